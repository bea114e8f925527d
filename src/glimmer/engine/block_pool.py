"""Which blocks of the KV cache are whose, and which still hold a prefix that may be wanted again.

Knows numbers, not memory.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Blocks ``0 .. num_blocks - 1``; each is free or belongs to one or more sequences.

    A block whose contents are known by a hash (see ``prefix_cache``) keeps them when it becomes
    free, until it is given out again: those that hold nothing go first, then the one that has been
    free for longest.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._owners = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))  # the lowest is taken first
        self._kept: OrderedDict[int, None] = OrderedDict()  # free, with known contents
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that ``allocate`` can give, those with known contents included."""
        return len(self._empty) + len(self._kept)

    def allocate(self, count: int) -> list[int]:
        """Blocks of one new owner each, whose contents are nobody's."""
        assert count <= self.num_free, "the scheduler asks before it takes"
        blocks = [self._empty.pop() for _ in range(min(count, len(self._empty)))]
        while len(blocks) < count:
            block, _ = self._kept.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
            blocks.append(block)
        for block in blocks:
            self._owners[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more owner for each."""
        for block in blocks:
            self._kept.pop(block, None)
            self._owners[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """One owner less for each. The end of a sequence is forgotten before its beginning."""
        for block in reversed(blocks):
            self._owners[block] -= 1
            assert self._owners[block] >= 0, "a block was freed twice"
            if self._owners[block] == 0:
                if block in self._hash_of:
                    self._kept[block] = None
                else:
                    self._empty.append(block)

    def is_shared(self, block: int) -> bool:
        """Whether it has several owners, so that none of them may write to it."""
        return self._owners[block] > 1

    def forget(self, block: int) -> None:
        """Its one owner is going to write to it: it is not found any more."""
        assert self._owners[block] == 1
        if (block_hash := self._hash_of.pop(block, None)) is not None:
            del self._block_of[block_hash]

    def remember(self, block: int, block_hash: bytes) -> None:
        """The block is full and will not change: it may be found by this hash from now on."""
        if block_hash not in self._block_of and block not in self._hash_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def find(self, block_hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known beginning of a chain of hashes. Takes none of them."""
        found = []
        for block_hash in block_hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def num_free_of(self, blocks: Iterable[int]) -> int:
        """How many of them are free: as many fewer can be allocated once they are shared."""
        return sum(self._owners[block] == 0 for block in blocks)

    def forget_all(self) -> None:
        """Empty the prefix cache; blocks that are owned stay so."""
        self._empty += reversed(self._kept)
        self._kept.clear()
        self._block_of.clear()
        self._hash_of.clear()

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that each block is free once, or in as many of the tables as it has owners."""
        owners = Counter(block for table in tables for block in table)
        assert all(owners[block] == n for block, n in enumerate(self._owners)), (
            "a block has other owners than its tables"
        )
        free = sorted([*self._empty, *self._kept])
        assert free == [block for block, n in enumerate(self._owners) if n == 0], (
            "a block was lost, or is free and owned"
        )
        assert all(block in self._hash_of for block in self._kept), "an empty block is kept"
        assert not any(block in self._hash_of for block in self._empty), "a hash leads nowhere"
        assert self._block_of == {h: block for block, h in self._hash_of.items()}, (
            "the two directions of the prefix cache disagree"
        )
