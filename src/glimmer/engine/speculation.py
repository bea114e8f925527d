"""Drafts from the text itself: what followed the last time that the latest tokens stood there.

A draft costs one more row in a step and is kept only if the sampler, with that position's own
random number, chooses the very same token. So the answer never depends on it, only the speed does.
"""

from __future__ import annotations

from collections.abc import Sequence

_NGRAM = 3  # shorter ones match by chance
_MOST_PATIENCE = 64


class Drafter:
    """Follows one sequence. After a draft that failed it waits: 2 tokens, then 4, up to 64."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # of the latest occurrence but the last
        self._num_seen = 0
        self._wait = 0
        self._patience = 1

    def propose(self, token_ids: Sequence[int], most: int) -> list[int]:
        """At most that many tokens that may follow; called once for each step."""
        found = self._index(token_ids)
        if self._wait > 0:
            self._wait -= 1
            return []
        if found is None:
            return []
        drafts: list[int] = []
        for at in range(found, found + most):
            # What repeats itself goes on repeating.
            beyond = at - len(token_ids)
            drafts.append(token_ids[at] if beyond < 0 else drafts[beyond])
        return drafts

    def learn(self, num_drafts: int, num_accepted: int) -> None:
        if num_drafts == 0:
            return
        if num_accepted > 0:
            self._patience = 1
        else:
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
            self._wait = self._patience

    def _index(self, token_ids: Sequence[int]) -> int | None:
        """Where the text went on after its latest tokens stood there before."""
        found = None
        for end in range(max(self._num_seen, _NGRAM - 1) + 1, len(token_ids) + 1):
            key = tuple(token_ids[end - _NGRAM : end])
            found = self._ends.get(key)
            self._ends[key] = end
        self._num_seen = len(token_ids)
        return found
