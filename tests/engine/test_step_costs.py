"""What steps cost by their rows, as they have shown."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.engine.step_costs import StepCosts


def taught(seconds: dict[int, float], times: int = 60) -> StepCosts:
    costs = StepCosts()
    for _ in range(times):
        for num_rows, value in seconds.items():
            costs.learn("alone", 1, num_rows, value)
    return costs


def test_before_any_step_a_row_is_a_quarter() -> None:
    costs = StepCosts()
    assert [costs.of(n) for n in (1, 2, 5, 101)] == [1, 1.25, 2, 26]


def test_sizes_between_are_drawn_and_beyond_them_continued() -> None:
    costs = taught({1: 0.010, 3: 0.013, 5: 0.019})
    expected = {1: 1, 2: 1.15, 3: 1.3, 4: 1.6, 5: 1.9, 9: 1.9 + 4 * 0.225, 200: 1 + 199 * 0.225}
    assert {n: costs.of(n) for n in expected} == pytest.approx(expected)


def test_one_interruption_counts_little() -> None:
    costs = taught({1: 0.010, 3: 0.013})
    costs.learn("alone", 1, 3, 1.0)
    assert 1.3 < costs.of(3) < 2.4
    for _ in range(40):
        costs.learn("alone", 1, 3, 0.013)
    assert costs.of(3) == pytest.approx(1.3, abs=0.01)


def test_the_first_step_of_a_size_is_half_believed() -> None:
    costs = taught({1: 0.010})
    costs.learn("alone", 1, 5, 0.100)
    assert costs.of(5) == pytest.approx((2 + 10) / 2)


def test_only_the_same_sequences_are_compared() -> None:
    costs = taught({1: 0.010, 3: 0.013})
    assert costs.knows("alone")
    assert not costs.knows("another")
    costs.learn("another", 1, 3, 5.0)  # with no plain step beside it, this tells nothing
    assert costs.of(3) == pytest.approx(1.3)
    # Two sequences: two rows are their plain step.
    costs.learn("two", 2, 2, 0.100)
    for _ in range(60):
        costs.learn("two", 2, 4, 0.150)
    assert costs.of(4) / costs.of(2) == pytest.approx(1.5)


def test_what_was_long_ago_is_forgotten() -> None:
    costs = taught({1: 0.010, 16: 0.200})
    assert costs.of(16) == pytest.approx(20)
    for _ in range(100):
        costs.learn("alone", 1, 3, 0.013)
    assert costs.of(16) == pytest.approx(1 + 15 * 0.15)


@given(st.lists(st.tuples(st.integers(1, 70), st.floats(1e-6, 10)), max_size=60))
def test_more_rows_never_cost_less(steps: list[tuple[int, float]]) -> None:
    costs = StepCosts()
    for num_rows, seconds in steps:
        costs.learn(None, 1, num_rows, seconds)
    curve = [costs.of(n) for n in range(1, 130)]
    assert all(a < b for a, b in pairwise(curve))
    assert curve[0] == 1
