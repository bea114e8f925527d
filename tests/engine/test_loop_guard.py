"""An answer that runs in a circle is told from one that repeats a little."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimmer.engine import LoopLimits
from glimmer.engine.loop_guard import LoopGuard
from glimmer.errors import InvalidParameterError


def circles(tokens: list[int], limits: LoopLimits) -> bool:
    """The rule, word by word: some piece stands often enough, and long enough, at the end."""
    for period in range(1, limits.max_period + 1):
        length = max(limits.min_tokens, limits.min_repeats * period)
        tail = tokens[-length:]
        if len(tail) == max(length, period + 1) and all(
            a == b for a, b in zip(tail[period:], tail, strict=False)
        ):
            return True
    return False


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(1, 12)),
        max_size=12,
    ),
    st.builds(
        LoopLimits,
        min_repeats=st.integers(2, 5),
        min_tokens=st.integers(2, 20),
        max_period=st.integers(1, 7),
    ),
)
def test_the_count_follows_the_rule(
    pieces: list[tuple[list[int], int]], limits: LoopLimits
) -> None:
    tokens = [t for piece, times in pieces for t in piece * times]
    guard = LoopGuard(limits)
    for end, token in enumerate(tokens, 1):
        assert guard.repeats(token) == circles(tokens[:end], limits)


def test_text_that_repeats_a_little_goes_on() -> None:
    guard = LoopGuard(LoopLimits())
    table = [[1, 2, 3, 4, row, 5, 6] for row in range(300)]
    assert not any(guard.repeats(t) for line in table for t in line)
    assert not any(guard.repeats(9) for _ in range(127))
    assert guard.repeats(9)


@pytest.mark.parametrize("values", [{"min_repeats": 1}, {"min_tokens": 0}, {"max_period": 1.5}])
def test_limits_out_of_range(values: dict[str, int]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(values))):
        LoopLimits(**values)
