"""Where the end of a growing text stood before, in constant time for each token."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

LONGEST = 32
"""Tokens of agreement that are counted; more say nothing more."""
# The longest that is found wins, and of places that agree as far the latest.
_ORDERS = (16, 6, 2)
_BASE = 0x9E3779B97F4A7C15
_POWERS = tuple(pow(_BASE, order, 2**64) for order in _ORDERS)
_LONG = 8
"""Tokens of a repeat in which a changed one is thought an edit, and the rest to follow."""
_MIX = 0xD6E8FEB86659FD93
_MASK = 2**64 - 1
_FEWEST_BITS = 10
_MANY = 64
"""New tokens that are rather indexed at once."""

_Table: TypeAlias = "array[int]"


class LongestMatch:
    """Follows one text: ``token_ids[end - length : end]`` is its end, further ahead.

    A match goes on as long as the text repeats what stood there, and over one token that was
    changed in a long repeat: its length then counts from there. Else the last 16, 6 and 2 tokens
    are looked up, each in a table of the places where so many stood last. A table is indexed by a
    hash and holds places alone; what is found there is compared token by token. So a text of
    100,000 tokens takes 12 MB, and a collision loses a match but never makes one.
    """

    def __init__(self) -> None:
        self.end = 0
        """0 for no match."""
        self.length = 0
        """Tokens that agree, at most ``LONGEST``."""
        self.num_seen = 0
        self._shift = 64
        self._tables: list[_Table] = []
        self._hashes = [0] * len(_ORDERS)

    def catch_up(self, token_ids: Sequence[int]) -> None:
        """Follow a text of which much is new, or nothing is known."""
        count = len(token_ids)
        bits = max(_FEWEST_BITS, (8 * count - 1).bit_length())
        self._shift = 64 - bits
        self._tables, self._hashes = [], []
        ids = np.array(token_ids, np.uint64) + np.uint64(1)
        for order in _ORDERS:
            table = array("i", bytes(4 << bits))
            num_ends = max(count - order + 1, 0)
            hashes = np.zeros(num_ends, np.uint64)
            for first in range(order if num_ends else 0):
                hashes = hashes * np.uint64(_BASE) + ids[first : first + num_ends]
            # The end of the text itself comes with ``_look_up``. Of equal slots the last one stays.
            slots = (hashes[:-1] * np.uint64(_MIX)) >> np.uint64(self._shift)
            np.frombuffer(table, np.int32)[slots] = np.arange(order, order + len(slots))
            self._tables.append(table)
            self._hashes.append(int(hashes[-1]) if num_ends else _hash(token_ids))
        self.end = self.length = 0
        self.num_seen = count
        self._look_up(token_ids)

    def follow(self, token_ids: Sequence[int]) -> None:
        """Take the next token, the one at ``num_seen``."""
        count = self.num_seen + 1
        if 4 * count > len(self._tables[0]):
            self.catch_up(token_ids[:count])
            return
        token_id = token_ids[self.num_seen]
        if self.end and token_ids[self.end] == token_id:
            self.end += 1
            self.length = min(self.length + 1, LONGEST)
        elif self.length >= _LONG:
            self.end += 1
            self.length = 0
        else:
            self.end = self.length = 0
        for i, order in enumerate(_ORDERS):
            value = self._hashes[i] * _BASE + token_id + 1
            if count > order:
                value -= (token_ids[count - order - 1] + 1) * _POWERS[i]
            self._hashes[i] = value & _MASK
        self.num_seen = count
        self._look_up(token_ids)

    def is_far_behind(self, token_ids: Sequence[int]) -> bool:
        """Whether ``catch_up`` is the quicker way."""
        return self.num_seen == 0 or len(token_ids) - self.num_seen > _MANY

    def _look_up(self, token_ids: Sequence[int]) -> None:
        """Take a longer match if there is one, and enter the end of the text."""
        count = self.num_seen
        for order, table, value in zip(_ORDERS, self._tables, self._hashes, strict=True):
            if count < order:
                continue
            slot = (value * _MIX & _MASK) >> self._shift
            if self.length < order and (end := table[slot]):
                length = _agreement(token_ids, end, count)
                if length > max(self.length, 1):
                    self.end, self.length = end, length
            table[slot] = count


def _agreement(token_ids: Sequence[int], end: int, count: int) -> int:
    """Tokens before ``end`` that equal those before ``count``, as far as is counted."""
    length, longest = 0, min(end, LONGEST)
    while length < longest and token_ids[end - length - 1] == token_ids[count - length - 1]:
        length += 1
    return length


def _hash(token_ids: Sequence[int]) -> int:
    value = 0
    for token_id in token_ids:
        value = (value * _BASE + token_id + 1) & _MASK
    return value
