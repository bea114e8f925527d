"""What is drafted from a text, and when nothing is."""

from __future__ import annotations

from glimmer.engine.speculation import Drafter


def test_what_followed_the_last_time() -> None:
    drafter = Drafter()
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3, 9, 8, 7, 1, 2, 3]
    assert drafter.propose(text, 3) == [9, 8, 7]
    assert drafter.propose([*text, 9], 3) == [8, 7, 1]
    assert drafter.propose([*text, 9, 4], 3) == []


def test_what_repeats_goes_on_repeating() -> None:
    assert Drafter().propose([5, 6, 7, 1, 2, 1, 2, 1, 2, 1], 5) == [2, 1, 2, 1, 2]
    assert Drafter().propose([4, 4, 4, 4], 3) == [4, 4, 4]


def test_a_text_too_short_or_new() -> None:
    assert Drafter().propose([1, 2], 3) == []
    assert Drafter().propose([*range(100)], 3) == []


def test_failures_make_it_wait_and_success_makes_it_try_again() -> None:
    drafter, text = Drafter(), [1] * 10

    def steps_until_a_draft() -> int:
        for count in range(1, 200):
            text.append(1)
            if drafter.propose(text, 3):
                return count
        raise AssertionError

    assert steps_until_a_draft() == 1
    waits = []
    for _ in range(8):
        drafter.learn(3, 0)
        waits.append(steps_until_a_draft() - 1)
    assert waits == [2, 4, 8, 16, 32, 64, 64, 64]
    drafter.learn(3, 1)
    assert steps_until_a_draft() == 1
    drafter.learn(3, 0)
    assert steps_until_a_draft() - 1 == 2
