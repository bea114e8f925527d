"""Names for what a block of the KV cache holds, so that equal beginnings are computed once.

A block's hash covers its tokens, where they stand if that is not just their order, and, through
the hash before it, all before them: equal hashes mean equal keys and values, bit for bit. Where a
network shows the whole context to each of its tokens, the chain starts with the whole context, so
that only texts with that context share. Texts of different adapters share nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from glimmer.architecture import TextLayout
from glimmer.native import BLOCK_SIZE


def _digest(before: bytes, numbers: Sequence[int]) -> bytes:
    return blake2b(array("i", numbers).tobytes(), digest_size=16, key=before).digest()


def _numbers(token_ids: Sequence[int], layout: TextLayout | None, indices: range) -> list[int]:
    """What a part of a text is, as far as its keys and values depend on it."""
    tokens = list(token_ids[indices.start : indices.stop])
    if layout is None or layout.block_positions is None:
        return tokens
    return [*tokens, *map(layout.position, indices), *map(layout.block_position, indices)]


def root(token_ids: Sequence[int], layout: TextLayout | None, adapter: bytes = b"") -> bytes:
    """What the chain of a text starts with: the context, which is seen by all of it, and the digest
    of what changes the network for it."""
    context = range(layout.context_length if layout is not None else 0)
    return _digest(adapter, _numbers(token_ids, layout, context))


def extend(
    chain: list[bytes],
    root: bytes,
    token_ids: Sequence[int],
    layout: TextLayout | None,
    num_blocks: int,
) -> None:
    """Hash further blocks until the chain has ``num_blocks``."""
    for index in range(len(chain), num_blocks):
        block = range(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE)
        numbers = _numbers(token_ids, layout, block)
        chain.append(_digest(chain[-1] if chain else root, numbers))


def hashes(
    chain: list[bytes], root: bytes, token_ids: Sequence[int], layout: TextLayout | None
) -> Iterator[bytes]:
    """The hashes of a text's full blocks one by one, kept in ``chain`` as they are made."""
    for index in range(len(token_ids) // BLOCK_SIZE):
        extend(chain, root, token_ids, layout, index + 1)
        yield chain[index]
