"""What is drafted from a text, and when nothing is."""

from __future__ import annotations

from glimmer.engine.speculation import Drafter, StepCosts


def drafter() -> Drafter:
    return Drafter(StepCosts())


def test_what_followed_the_last_time() -> None:
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3, 9, 8, 7, 5, 1, 2, 3]
    follows = drafter()
    assert follows.propose(text, 3) == [9]
    # The longer the text agrees with what it was, the more is drafted.
    assert follows.propose([*text, 9], 3) == [8, 7]
    assert follows.propose([*text, 9, 8], 3) == [7, 5, 1]
    assert follows.propose([*text, 9, 8], 0) == []
    assert follows.propose([*text, 9, 8, 4], 3) == []


def test_what_repeats_goes_on_repeating() -> None:
    assert drafter().propose([5, 6, 7, *[1, 2] * 6], 4) == [1, 2, 1, 2]
    assert drafter().propose([4] * 9, 3) == [4, 4, 4]


def test_a_text_too_short_or_new() -> None:
    assert drafter().propose([1, 2], 3) == []
    assert drafter().propose([*range(100)], 3) == []


def test_failures_cost_a_bounded_share() -> None:
    follows, text, paid = drafter(), [1] * 10, 0.0
    for num_tokens in range(1, 2000):
        text.append(1)
        if drafts := follows.propose(text, 3):
            follows.learn(len(drafts), 0)
            paid += 0.25 * len(drafts)
        assert paid <= 1 + 0.015 * num_tokens
    assert paid > 20


def test_success_pays_for_more() -> None:
    follows, text, num_drafted = drafter(), [1] * 10, 0
    for _ in range(100):
        text.append(1)
        drafts = follows.propose(text, 3)
        follows.learn(len(drafts), len(drafts))
        num_drafted += len(drafts)
    assert num_drafted == 300


def test_costs_are_what_steps_took() -> None:
    costs = StepCosts()
    assert costs.of(2) == 0.5
    for _ in range(50):
        costs.learn(1, 0.010)
        costs.learn(3, 0.013)
    costs.learn(3, 1.0)  # another program was in the way
    assert 0.2 < costs.of(2) < 2
    for _ in range(50):
        costs.learn(3, 0.013)
    assert abs(costs.of(2) - 0.3) < 0.05
    costs.learn(2, 0.009)
    assert costs.of(1) == 0.02
