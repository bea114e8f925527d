"""Drafts from the text itself: what followed where the end of the text stood before.

A draft costs one more row in a step and is kept only if the sampler, with that position's own
random number, chooses the very same token. So the answer never depends on it, only the speed does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glimmer.engine.longest_match import LONGEST, LongestMatch
from glimmer.engine.step_costs import StepCosts

MOST_DRAFTS = 15
"""For one sequence in one step: with more, a row hardly gets cheaper and is hardly ever right."""
FORCED_CHANCE = 0.98
"""That a token which a form forces is chosen; the tokenizer may know another spelling."""
_LEAST_CHANCE = 0.1
_MARGIN = 1.02
"""What a step with drafts must promise, so that noise in what is known does not count."""
_START = 1.0
_INTEREST = 0.015
_MOST_CREDIT = 8.0

# Lengths of agreement that are taken as one, and how often the next token is then the same: over
# 40 answers of the demo model, copies and free text, and eight edits of code for the lengths behind
# a changed token, 0 and 1. What an answer shows itself soon weighs more.
_BUCKETS = (0, 1, 2, 3, 4, 5, 7, 10, 16, LONGEST)
_RATES = (0.3, 0.75, 0.4, 0.55, 0.65, 0.7, 0.8, 0.88, 0.95, 0.98)
_WEIGHT = 8.0
_FORGET = 0.98
_BUCKET_OF = tuple(sum(n >= b for b in _BUCKETS) - 1 for n in range(LONGEST + 1))


@dataclass(frozen=True, slots=True)
class Guess:
    """Tokens that may follow, and the chance of each to be reached and right."""

    token_ids: list[int]
    chances: list[float]


class Drafter:
    """Follows one sequence.

    Every token of the answer tells whether a draft would have been right, drafted or not; so the
    chances are learned without a row being spent.

    It also keeps an account in steps. A draft that was right earns one, a step that drafts have
    made longer costs that much, whoever they were for, and each token adds a little. What one of
    the accounts in a step cannot pay for is not drafted. So, whatever the chances were thought to
    be, drafts take no more than 1.5 % of any sequence's time, and one step.
    """

    def __init__(self) -> None:
        self.credit = _START
        self._match = LongestMatch()
        self._trials = [_WEIGHT] * len(_BUCKETS)
        self._hits = [_WEIGHT * rate for rate in _RATES]

    def guess(self, token_ids: Sequence[int], most: int) -> Guess:
        """At most so many tokens."""
        self._follow(token_ids)
        match = self._match
        if match.end == 0:
            return Guess([], [])
        drafts: list[int] = []
        chances: list[float] = []
        chance = 1.0
        for ahead in range(most):
            bucket = _BUCKET_OF[min(match.length + ahead, LONGEST)]
            chance *= self._hits[bucket] / self._trials[bucket]
            if chance < _LEAST_CHANCE:
                break
            # What repeats itself goes on repeating.
            beyond = match.end + ahead - len(token_ids)
            drafts.append(token_ids[match.end + ahead] if beyond < 0 else drafts[beyond])
            chances.append(chance)
        return Guess(drafts, chances)

    def pay(self, price: float) -> None:
        """For a step that drafts make longer, in plain steps."""
        self.credit -= price

    def earn(self, num_accepted: int) -> None:
        self.credit = min(self.credit + num_accepted, _MOST_CREDIT)

    def _follow(self, token_ids: Sequence[int]) -> None:
        match = self._match
        if match.is_far_behind(token_ids):
            match.catch_up(token_ids)
        while match.num_seen < len(token_ids):
            if match.end:
                bucket = _BUCKET_OF[match.length]
                self._trials[bucket] = self._trials[bucket] * _FORGET + 1
                right = token_ids[match.end] == token_ids[match.num_seen]
                self._hits[bucket] = self._hits[bucket] * _FORGET + right
            match.follow(token_ids)
            self.credit = min(self.credit + _INTEREST, _MOST_CREDIT)


def choose_rows(
    guesses: Sequence[Guess], costs: StepCosts, credit: float, most: int, num_prompt_rows: int = 0
) -> tuple[list[int], float]:
    """How many drafts of each sequence a step should take, and its price in plain steps.

    The likeliest are taken first, as many as make most tokens for the time, at most ``most``, for
    no more than ``credit``. A step that also reads ``num_prompt_rows`` of prompts takes what it
    takes; there, each draft must be worth what its row adds.
    """
    num_plain = len(guesses)
    plain, before = costs.of(num_plain), costs.of(num_plain + num_prompt_rows)
    # Stable: of one sequence, no draft comes before those that it stands on.
    ranked = sorted(
        ((chance, i) for i, guess in enumerate(guesses) for chance in guess.chances),
        key=lambda x: -x[0],
    )
    counts, taken, paid = [0] * num_plain, 0, 0.0
    expected, best = 0.0, _MARGIN
    for number, (chance, _) in enumerate(ranked[:most], 1):
        price = (costs.of(num_plain + num_prompt_rows + number) - before) / plain
        if price > credit:
            break
        expected += chance / num_plain
        gain = 1 + expected - price if num_prompt_rows else (1 + expected) / (1 + price)
        if gain > best:
            best, taken, paid = gain, number, price
    for _, i in ranked[:taken]:
        counts[i] += 1
    return counts, paid
