"""Which blocks of the KV cache are free. Knows numbers, not memory."""

from __future__ import annotations


class BlockPool:
    """Blocks ``0 .. num_blocks - 1``; each is free or belongs to one sequence."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # the lowest is taken first

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        assert count <= self.num_free, "the scheduler asks before it takes"
        return [self._free.pop() for _ in range(count)]

    def free(self, blocks: list[int]) -> None:
        self._free.extend(reversed(blocks))

    def check_integrity(self, owned: list[list[int]]) -> None:
        """Assert that every block is free or in exactly one of the tables ``owned``."""
        blocks = sorted(self._free + [block for table in owned for block in table])
        assert blocks == list(range(self.num_blocks)), "a block was lost or shared"
