"""Names for what a block of the KV cache holds, so that equal beginnings are computed once.

A block's hash covers its tokens and, through the hash before it, all tokens before them: equal
hashes mean equal keys and values, bit for bit. Where a network shows the whole context to each of
its tokens, the chain starts with the whole context, so that only texts with that context share.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from glimmer.native import BLOCK_SIZE


def _digest(before: bytes, token_ids: Sequence[int]) -> bytes:
    return blake2b(array("i", token_ids).tobytes(), digest_size=16, key=before).digest()


def root(token_ids: Sequence[int], context_length: int) -> bytes:
    """What the chain of a text starts with; ``context_length`` tokens are seen by all of it."""
    return _digest(b"", token_ids[:context_length])


def extend(chain: list[bytes], root: bytes, token_ids: Sequence[int], num_blocks: int) -> None:
    """Hash further blocks until the chain has ``num_blocks``."""
    for index in range(len(chain), num_blocks):
        tokens = token_ids[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
        chain.append(_digest(chain[-1] if chain else root, tokens))


def hashes(chain: list[bytes], root: bytes, token_ids: Sequence[int]) -> Iterator[bytes]:
    """The hashes of a text's full blocks one by one, kept in ``chain`` as they are made."""
    for index in range(len(token_ids) // BLOCK_SIZE):
        extend(chain, root, token_ids, index + 1)
        yield chain[index]
