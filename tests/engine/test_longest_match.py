"""Where the end of a text stood before: never wrongly, and as far as it can be found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glimmer.engine.longest_match import LONGEST, LongestMatch


def followed(text: list[int], known: int = 1) -> LongestMatch:
    match = LongestMatch()
    match.catch_up(text[:known])
    while match.num_seen < len(text):
        match.follow(text)
    return match


TEXTS = st.one_of(
    st.lists(st.integers(0, 3), min_size=1, max_size=400),
    st.lists(st.integers(0, 200_000), min_size=1, max_size=80).map(lambda x: x * 5),
)


@given(TEXTS, st.data())
def test_a_match_is_one(text: list[int], data: st.DataObject) -> None:
    match = LongestMatch()
    match.catch_up(text[: data.draw(st.integers(1, len(text)))])
    while match.num_seen < len(text):
        match.follow(text)
        count = match.num_seen
        assert match.end < count
        if match.end:
            assert match.length <= LONGEST
            assert text[match.end - match.length : match.end] == text[count - match.length : count]


@given(TEXTS, st.data())
def test_it_is_the_same_however_the_text_came(text: list[int], data: st.DataObject) -> None:
    once, rest = LongestMatch(), LongestMatch()
    once.catch_up(text)
    rest.catch_up(text[: data.draw(st.integers(1, len(text)))])
    while rest.num_seen < len(text):
        rest.follow(text)
    # One that goes on may be older than the one that is found, and then agrees as far.
    assert rest.length >= min(once.length, 2)
    for token_id in (1, 2, 3):
        text = [*text, token_id]
        for match in (once, rest):
            match.follow(text)
    assert once._hashes == rest._hashes


def test_the_longest_agreement_wins_and_of_equal_ones_the_latest() -> None:
    long = [*range(100, 120)]
    text = [*long, 1, 2, *range(20, 40), *long[-3:], 3, 4, *range(40, 60), *long]
    match = followed(text)
    assert (match.end, match.length) == (20, 20)
    text = [7, 8, 1, *range(20, 30), 7, 8, 2, *range(30, 40), 7, 8]
    assert followed(text).end == 15


def test_a_repeat_is_followed_through_a_growing_index() -> None:
    text = [*range(3000)] * 2
    match = followed(text, 3000)
    assert (match.end, match.length) == (3000, LONGEST)


def test_a_repeat_goes_on_behind_a_changed_token_but_not_behind_two() -> None:
    page = [*range(40)]
    match = followed([*page, *page[:20], 99])
    assert (match.end, match.length) == (21, 0)
    match = followed([*page, *page[:20], 99, 21, 22])
    assert (match.end, match.length) == (23, 2)
    assert followed([*page, *page[:20], 99, 98]).end == 0
    assert followed([*page, *page[:5], 99]).end == 0


def test_a_long_text_takes_bounded_memory() -> None:
    match = LongestMatch()
    match.catch_up([*range(100_000)])
    assert sum(len(table) * table.itemsize for table in match._tables) <= 2**24
    assert match.is_far_behind([*range(100_100)])
    assert not match.is_far_behind([*range(100_010)])
