"""What is drafted from a text, how much of it, and when nothing is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.engine.speculation import MOST_DRAFTS, Drafter, Guess, choose_rows
from glimmer.engine.step_costs import StepCosts


def test_what_followed_where_the_end_of_the_text_stood() -> None:
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3, 9, 8, 7, 5, 1, 2, 3]
    drafter = Drafter()
    assert drafter.guess(text, 3).token_ids[:2] == [9, 8]
    assert drafter.guess([*text, 9], 3).token_ids[:3] == [8, 7, 5]
    assert drafter.guess([*text, 9], 0).token_ids == []
    assert drafter.guess([*text, 9, 4], 3).token_ids == []


def test_what_repeats_goes_on_repeating() -> None:
    assert Drafter().guess([5, 6, 7, *[1, 2] * 20], 5).token_ids == [1, 2, 1, 2, 1]
    assert Drafter().guess([4] * 40, 3).token_ids == [4, 4, 4]


def test_a_text_too_short_or_new() -> None:
    assert Drafter().guess([1], 3).token_ids == []
    assert Drafter().guess([*range(100)], 3).token_ids == []


def test_chances_fall_along_a_guess_and_rise_with_agreement() -> None:
    short = Drafter().guess([1, 2, 3, 4, 5, 6, 9, 1, 2], 4)
    long = Drafter().guess([*range(50)] * 2, MOST_DRAFTS)
    assert len(long.chances) == MOST_DRAFTS
    for guess in (short, long):
        assert guess.chances == sorted(guess.chances, reverse=True)
        assert len(guess.chances) == len(guess.token_ids)
    assert long.chances[0] > short.chances[0]


def test_chances_are_learned_without_drafts() -> None:
    # The same pair is followed by something else each time.
    text, drafter = [1, 2], Drafter()
    for other in range(100, 160):
        drafter.guess(text, MOST_DRAFTS)
        text += [other, 1, 2]
    assert drafter.guess(text, MOST_DRAFTS).token_ids == []
    text, drafter = [1, 2], Drafter()
    for _ in range(20):
        drafter.guess(text, MOST_DRAFTS)
        text += [3, 1, 2]
    assert drafter.guess(text, MOST_DRAFTS).chances[0] > 0.95


CERTAIN, EVEN = Guess([7] * 15, [0.99] * 15), Guess([7, 7, 7], [0.5, 0.25, 0.125])


def costs_of(seconds: dict[int, float]) -> StepCosts:
    costs = StepCosts()
    for _ in range(60):
        for num_rows, cost in {1: 1.0, **seconds}.items():
            costs.learn(0, 1, num_rows, cost)
    return costs


@pytest.mark.parametrize(
    ("guesses", "credit", "counts"),
    [
        ([CERTAIN], 100, [15]),
        ([EVEN], 100, [1]),
        ([EVEN], 0.2, [0]),
        ([CERTAIN], 1.1, [4]),
        ([CERTAIN, CERTAIN], 100, [15, 15]),
        ([CERTAIN, EVEN], 100, [15, 0]),
        ([Guess([7], [0.2])], 100, [0]),
        ([Guess([], [])], 100, [0]),
    ],
)
def test_as_many_as_pay(guesses: list[Guess], credit: float, counts: list[int]) -> None:
    assert choose_rows(guesses, StepCosts(), credit, 100)[0] == counts


def test_the_price_is_what_the_drafts_add_for_everyone() -> None:
    costs = costs_of({2: 1.2, 4: 1.8})
    counts, price = choose_rows([CERTAIN, Guess([], [])], costs, 100, 2)
    assert counts == [2, 0]
    assert price == pytest.approx(1.8 / 1.2 - 1)


def test_a_row_that_gets_dear_ends_the_drafts() -> None:
    costs = costs_of({4: 1.5, 5: 4.0})
    assert choose_rows([CERTAIN], costs, 100, 100)[0] == [3]


def test_beside_prompts_each_draft_must_be_worth_its_row() -> None:
    chances = [0.9, 0.5, 0.2, 0.1]
    guess = Guess([7] * 4, chances)
    assert choose_rows([guess], StepCosts(), 100, 16, num_prompt_rows=200)[0] == [2]
    assert choose_rows([guess], StepCosts(), 100, 1, num_prompt_rows=200)[0] == [1]


@given(
    st.lists(st.lists(st.floats(0.01, 1), max_size=15), min_size=1, max_size=8),
    st.floats(-1, 8),
    st.integers(0, 40),
    st.sampled_from([0, 100]),
)
def test_no_more_than_is_allowed_and_affordable(
    chances: list[list[float]], credit: float, most: int, num_prompt_rows: int
) -> None:
    guesses = [Guess([7] * len(c), sorted(c, reverse=True)) for c in chances]
    counts, price = choose_rows(guesses, StepCosts(), credit, most, num_prompt_rows)
    assert sum(counts) <= most
    assert all(n <= len(g.token_ids) for n, g in zip(counts, guesses, strict=True))
    assert (price == 0) == (sum(counts) == 0)
    assert price <= max(credit, 0)


def test_failures_cost_a_bounded_share() -> None:
    """The worst: every draft is wrong, and thought to be nearly certain."""
    drafter, costs, paid = Drafter(), StepCosts(), 0.0
    text, chance = [1] * 20, random.Random(0)
    for num_tokens in range(1, 3000):
        text.append(chance.choice([1, 2]))
        guess = drafter.guess(text, MOST_DRAFTS)
        sure = Guess(guess.token_ids, [0.99] * len(guess.token_ids))
        _, price = choose_rows([sure], costs, drafter.credit, 100)
        drafter.pay(price)
        paid += price
        assert paid <= 1 + 0.015 * num_tokens + 1e-9
    assert paid > 30
