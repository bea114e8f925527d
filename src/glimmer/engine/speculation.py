"""Drafts from the text itself: what followed the last time that the latest tokens stood there.

A draft costs one more row in a step and is kept only if the sampler, with that position's own
random number, chooses the very same token. So the answer never depends on it, only the speed does.
"""

from __future__ import annotations

from collections.abc import Sequence

_NGRAM = 3
"""Tokens that must agree; shorter agreement is mostly chance."""
_LONGEST_LOOK = 8
_START = 1.0
_INTEREST = 0.015
_MOST_CREDIT = 4.0


class StepCosts:
    """What one more row costs a step that decodes a single sequence, as a share of that step."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def learn(self, num_rows: int, seconds: float) -> None:
        """A step took so long."""
        known = self._seconds.get(num_rows, seconds)
        # What another program took is no cost of ours: such steps count little.
        self._seconds[num_rows] = known + (0.2 if seconds < 2 * known else 0.01) * (seconds - known)

    def of(self, num_drafts: int) -> float:
        """Of a step with so many drafts, in plain steps; a quarter for each where not known yet."""
        plain, drafted = self._seconds.get(1), self._seconds.get(1 + num_drafts)
        if plain is None or drafted is None:
            return 0.25 * num_drafts
        return max(drafted / plain - 1, 0.02 * num_drafts)


class Drafter:
    """Follows one sequence, and drafts as long as that pays.

    It keeps an account in steps: a token that was right earns one, rows cost what they cost, and
    each token of the answer adds a little. It drafts only what the account can pay for. So where
    nothing repeats, it takes no more than 1.5 % of the time, and one step.
    """

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._ends: dict[tuple[int, ...], int] = {}  # of the latest occurrence but the last
        self._num_seen = 0
        self._credit = _START

    def propose(self, token_ids: Sequence[int], most: int) -> list[int]:
        """At most that many tokens that may follow; called once for each step."""
        found = self._index(token_ids)
        self._credit = min(self._credit + _INTEREST, _MOST_CREDIT)
        if found is None or most == 0:
            return []
        # The longer the agreement, the likelier it goes on.
        count = min(most, self._agreement(token_ids, found) - _NGRAM + 1)
        if self._costs.of(count) > self._credit:
            return []
        drafts: list[int] = []
        for at in range(found, found + count):
            # What repeats itself goes on repeating.
            beyond = at - len(token_ids)
            drafts.append(token_ids[at] if beyond < 0 else drafts[beyond])
        return drafts

    def learn(self, num_drafts: int, num_accepted: int) -> None:
        if num_drafts > 0:
            self._credit += num_accepted - self._costs.of(num_drafts)

    def _index(self, token_ids: Sequence[int]) -> int | None:
        """Where the text went on after its latest tokens stood there before."""
        found = None
        for end in range(max(self._num_seen, _NGRAM - 1) + 1, len(token_ids) + 1):
            key = tuple(token_ids[end - _NGRAM : end])
            found = self._ends.get(key)
            self._ends[key] = end
        self._num_seen = len(token_ids)
        return found

    def _agreement(self, token_ids: Sequence[int], end: int) -> int:
        """Tokens before ``end`` that equal the latest ones, as far as is looked."""
        count = _NGRAM
        while (
            count < min(_LONGEST_LOOK, end) and token_ids[end - count - 1] == token_ids[-count - 1]
        ):
            count += 1
        return count
