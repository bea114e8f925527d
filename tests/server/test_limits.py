"""What a key may use at once, per minute and per day, beside a reference that keeps every event."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.errors import InvalidParameterError
from glimmer.server.errors import ApiError
from glimmer.server.limits import WINDOW_S, Admission, Limits, RateLimiter

NOON = 20_000 * 86_400 + 43_200.0


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> RateLimiter:
    return RateLimiter(clock)


def refusal(limiter: RateLimiter, limits: Limits, key_id: str = "a") -> ApiError:
    with pytest.raises(ApiError) as caught:
        limiter.admit(key_id, limits)
    return caught.value


@pytest.mark.parametrize("value", [0, -1, 1.5, True, 2**53 + 1, "3"])
def test_a_limit_is_a_positive_whole_number(value: object) -> None:
    with pytest.raises(InvalidParameterError, match="requests_per_day must be a whole number"):
        Limits(requests_per_day=value)  # type: ignore[arg-type]


def test_no_limits(limiter: RateLimiter) -> None:
    for _ in range(1000):
        limiter.admit("a", Limits())
    assert limiter.headers("a", Limits()) == {}


def test_concurrency(limiter: RateLimiter) -> None:
    limits = Limits(concurrency=2)
    first = limiter.admit("a", limits)
    limiter.admit("a", limits)
    error = refusal(limiter, limits)
    assert (error.kind, error.retry_after_s) == ("concurrency", 1.0)
    limiter.admit("b", limits)  # another key's own
    first.release()
    first.release(5)  # a second release is none
    limiter.admit("a", limits)
    assert refusal(limiter, limits).kind == "concurrency"


def test_a_block_gives_the_place_back_whatever_happens(limiter: RateLimiter) -> None:
    limits = Limits(concurrency=1, tokens_per_minute=10)
    with pytest.raises(ZeroDivisionError), limiter.admit("a", limits):
        raise ZeroDivisionError
    with limiter.admit("a", limits) as admission:
        admission.release(10)
    assert refusal(limiter, limits).kind == "rate"


def test_requests_per_minute_slide(limiter: RateLimiter, clock: Clock) -> None:
    limits = Limits(requests_per_minute=2)
    limiter.admit("a", limits).release()
    clock.now += 30
    limiter.admit("a", limits).release()
    error = refusal(limiter, limits)
    assert (error.kind, error.retry_after_s) == ("rate", 31)
    assert "2 requests a minute" in error.message
    clock.now += 31
    limiter.admit("a", limits).release()
    assert refusal(limiter, limits).retry_after_s == 30


def test_tokens_count_when_they_are_known(limiter: RateLimiter, clock: Clock) -> None:
    limits = Limits(tokens_per_minute=100)
    first, second = limiter.admit("a", limits), limiter.admit("a", limits)
    first.release(99)
    limiter.admit("a", limits).release(0)
    second.release(50)
    error = refusal(limiter, limits)
    assert error.kind == "rate"
    assert "100 tokens a minute" in error.message
    assert error.retry_after_s == 61
    clock.now += 61
    limiter.admit("a", limits)


def test_the_longest_wait_is_told(limiter: RateLimiter, clock: Clock) -> None:
    limits = Limits(requests_per_minute=1, tokens_per_minute=1)
    admission = limiter.admit("a", limits)
    clock.now += 10
    admission.release(1)
    error = refusal(limiter, limits)
    assert "1 tokens a minute" in error.message
    assert error.retry_after_s == 61


def test_the_day_ends_at_midnight_utc(limiter: RateLimiter, clock: Clock) -> None:
    limits = Limits(requests_per_day=2, tokens_per_day=1000, requests_per_minute=1)
    limiter.admit("a", limits).release()
    clock.now += 100
    limiter.admit("a", limits).release()
    error = refusal(limiter, limits)
    assert (error.kind, error.retry_after_s) == ("daily", 43_100)
    clock.now += 43_100
    limiter.admit("a", limits).release(1000)
    error = refusal(limiter, limits)
    assert error.kind == "daily"
    assert "1000 tokens a day" in error.message


def test_an_answer_over_midnight_counts_when_it_ends(limiter: RateLimiter, clock: Clock) -> None:
    limits = Limits(tokens_per_day=10)
    admission = limiter.admit("a", limits)
    clock.now += 43_200
    admission.release(10)
    assert refusal(limiter, limits).kind == "daily"


def test_a_restart_does_not_reset_the_day(limiter: RateLimiter, clock: Clock) -> None:
    limits = Limits(requests_per_day=10, tokens_per_day=100)
    for _ in range(2):
        limiter.seed("a", 9, 50)
    limiter.admit("a", limits).release()
    assert refusal(limiter, limits).kind == "daily"
    limiter.seed("b", 1, 100)
    assert refusal(limiter, limits, "b").kind == "daily"
    clock.now += 43_200
    limiter.admit("b", limits)


def test_headers_are_openais(limiter: RateLimiter, clock: Clock) -> None:
    limits = Limits(requests_per_minute=60, tokens_per_day=1000)
    assert limiter.headers("a", limits) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "60",
        "x-ratelimit-reset-requests": "0s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "1000",
        "x-ratelimit-reset-tokens": "0s",
    }
    limiter.admit("a", limits).release(1200)
    clock.now += 0.5
    headers = limiter.headers("a", limits)
    assert headers["x-ratelimit-remaining-requests"] == "59"
    assert headers["x-ratelimit-reset-requests"] == "1m1s"
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert headers["x-ratelimit-reset-tokens"] == "12h0m0s"
    clock.now += 55
    assert limiter.headers("a", limits)["x-ratelimit-reset-requests"] == "6s"


def test_headers_tell_the_limit_that_ends_first(limiter: RateLimiter) -> None:
    limits = Limits(requests_per_minute=60, requests_per_day=3)
    headers = limiter.headers("a", limits)
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert "x-ratelimit-limit-tokens" not in headers


def test_a_clock_that_is_set_back(limiter: RateLimiter, clock: Clock) -> None:
    limits = Limits(requests_per_minute=1, requests_per_day=3)
    limiter.admit("a", limits).release()
    clock.now -= 2
    assert refusal(limiter, limits).kind == "rate"
    clock.now -= 86_400  # the window lies in the future now; the day's counts stay
    limiter.admit("a", limits).release()
    clock.now -= 86_400
    limiter.admit("a", limits).release()
    clock.now -= 86_400
    assert refusal(limiter, limits).kind == "daily"


def test_threads(clock: Clock) -> None:
    limiter = RateLimiter(clock)
    limits = Limits(requests_per_minute=100, concurrency=100)
    admitted: list[Admission] = []

    def ask() -> None:
        for _ in range(50):
            try:
                admitted.append(limiter.admit("a", limits))
            except ApiError:
                continue

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 100


@dataclass
class Reference:
    """Keeps the time of every request and of all tokens, and adds them up each time."""

    limits: Limits
    requests: list[float] = field(default_factory=list)
    tokens: list[tuple[float, int]] = field(default_factory=list)
    num_active: int = 0

    def refuses(self, now: float) -> str | None:
        def in_window(time: float) -> bool:
            return math.floor(now) - math.floor(time) <= WINDOW_S

        def is_today(time: float) -> bool:
            return now // 86_400 == time // 86_400

        limits = self.limits

        def reached(limit: int | None, used: int) -> bool:
            return limit is not None and used >= limit

        if reached(limits.requests_per_day, sum(map(is_today, self.requests))) or reached(
            limits.tokens_per_day, sum(n for t, n in self.tokens if is_today(t))
        ):
            return "daily"
        if reached(limits.requests_per_minute, sum(map(in_window, self.requests))) or reached(
            limits.tokens_per_minute, sum(n for t, n in self.tokens if in_window(t))
        ):
            return "rate"
        return "concurrency" if reached(limits.concurrency, self.num_active) else None


small = st.none() | st.integers(1, 6)
some_limits = st.builds(
    Limits,
    concurrency=small,
    requests_per_minute=small,
    tokens_per_minute=st.none() | st.integers(1, 40),
    requests_per_day=st.none() | st.integers(1, 20),
    tokens_per_day=st.none() | st.integers(1, 200),
)
waits = st.floats(0, 2) | st.floats(0, 70) | st.sampled_from([0.0, 1.0, 59.0, 60.0, 61.0, 30_000.0])
events = st.lists(st.tuples(waits, st.none() | st.integers(0, 20)), max_size=60)
"""Seconds to wait, then an arrival (None) or the end of the oldest answer, with its tokens."""


@given(some_limits, events, st.floats(0, 86_400))
def test_the_same_as_the_reference(
    limits: Limits, events: list[tuple[float, int | None]], start: float
) -> None:
    clock = Clock(NOON + start)
    limiter, reference = RateLimiter(clock), Reference(limits)
    active: list[Admission] = []
    for wait_s, tokens in events:
        clock.now += wait_s
        if tokens is not None:
            if active:
                active.pop(0).release(tokens)
                reference.tokens.append((clock.now, tokens))
                reference.num_active -= 1
            continue
        expected = reference.refuses(clock.now)
        if expected is None:
            active.append(limiter.admit("a", limits))
            reference.requests.append(clock.now)
            reference.num_active += 1
            continue
        error = refusal(limiter, limits)
        assert error.kind == expected
        assert error.retry_after_s is not None
        assert error.retry_after_s > 0
        if expected != "concurrency":
            # After that wait this reason is gone; a moment before it is not.
            later = clock.now + error.retry_after_s
            assert reference.refuses(later + 1e-3) != expected
            assert reference.refuses(later - 1e-3) == expected
    now = clock.now
    limit = limits.requests_per_minute
    if limit is not None:
        assert all(
            sum(first <= time < first + WINDOW_S for time in reference.requests) <= limit
            for first in reference.requests
        )
        headers = limiter.headers("a", Limits(requests_per_minute=limit))
        used = sum(math.floor(now) - math.floor(time) <= WINDOW_S for time in reference.requests)
        assert headers["x-ratelimit-remaining-requests"] == str(limit - used)


def test_memory_is_bounded(limiter: RateLimiter, clock: Clock) -> None:
    for _ in range(5000):
        limiter.admit("a", Limits()).release(3)
        clock.now += 0.1
    (use,) = limiter._uses.values()
    assert len(use.seconds) <= WINDOW_S + 1
