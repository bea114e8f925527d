"""How much a key may ask at once, per minute and per day. Pure: no file, no network, no waiting.

The minute slides. Requests and tokens are summed per second, and a second counts until it lies
wholly outside the last 60: each is held against its key for 60 to 61 s, and no 60 s ever hold more
than the limit. The day is the calendar's, in UTC.

Tokens are known when an answer ends, so a request is admitted while its key has any left; answers
that are under way may pass the limit, and the next request waits for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from types import TracebackType

from glimmer.errors import InvalidParameterError
from glimmer.server.errors import ApiError

WINDOW_S = 60
_DAY_S = 86400
_CONCURRENCY_RETRY_S = 1.0  # nobody knows when an answer ends
_MAX_LIMIT = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one key may use. None is no limit.

    Raises:
        InvalidParameterError: a limit is not a whole number from 1 to 2**53.
    """

    concurrency: int | None = None
    """Requests under way at the same time."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and answer together."""
    requests_per_day: int | None = None
    tokens_per_day: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (type(value) is not int or not 1 <= value <= _MAX_LIMIT):
                raise InvalidParameterError(
                    f"The limit {field.name} must be a whole number of at least 1, or none, but "
                    f"it is {value!r}."
                )


class Admission:
    """One request's place. As a context manager it is given back at the block's end at the latest.

    ``release(tokens)`` gives it back and settles what was used; only the first call counts.
    """

    def __init__(self, release: Callable[[int], None]) -> None:
        self._release: Callable[[int], None] | None = release

    def release(self, tokens: int = 0) -> None:
        release, self._release = self._release, None
        if release is not None:
            release(tokens)

    def __enter__(self) -> Admission:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class RateLimiter:
    """Counts each key's use. ``clock`` gives seconds since 1970; safe to use from several threads.

    It takes at most 61 small entries per key, and counts for this process alone.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        self._lock = threading.Lock()

    def admit(self, key_id: str, limits: Limits) -> Admission:
        """Let one request in, and count it. It must be released.

        Raises:
            ApiError: of kind "daily", "rate" or "concurrency", with ``retry_after_s``. What is
                refused is not counted.
        """
        with self._lock:
            use, now = self._use(key_id)
            refusal = _refusal(use, limits, now)
            if refusal is not None:
                raise refusal
            use.add(now, requests=1)
            use.num_active += 1
        return Admission(lambda tokens: self._release(key_id, tokens))

    def seed(self, key_id: str, requests: int, tokens: int) -> None:
        """Today's use as the ledger has it, told before the key's first request after a start.

        Telling it twice counts once.
        """
        with self._lock:
            use, _ = self._use(key_id)
            use.day_requests = max(use.day_requests, requests)
            use.day_tokens = max(use.day_tokens, tokens)

    def headers(self, key_id: str, limits: Limits) -> dict[str, str]:
        """OpenAI's headers: limit, what remains, and when all of it is there again ("1m5s").

        Where a minute and a day are limited, the one that has less left is told; where neither is,
        the header is left out.
        """
        with self._lock:
            use, now = self._use(key_id)
            day_left_s = (use.day + 1) * _DAY_S - now
            candidates = {
                "requests": [
                    (limits.requests_per_minute, use.requests, use.idle_in_s(now, "requests")),
                    (limits.requests_per_day, use.day_requests, day_left_s),
                ],
                "tokens": [
                    (limits.tokens_per_minute, use.tokens, use.idle_in_s(now, "tokens")),
                    (limits.tokens_per_day, use.day_tokens, day_left_s),
                ],
            }
        headers = {}
        for what, rows in candidates.items():
            given = [
                (max(0, limit - used), limit, reset_s if used else 0.0)
                for limit, used, reset_s in rows
                if limit is not None
            ]
            if given:
                remaining, limit, reset_s = min(given, key=lambda row: row[0])
                headers[f"x-ratelimit-limit-{what}"] = str(limit)
                headers[f"x-ratelimit-remaining-{what}"] = str(remaining)
                headers[f"x-ratelimit-reset-{what}"] = _show_duration(reset_s)
        return headers

    def _release(self, key_id: str, tokens: int) -> None:
        with self._lock:
            use, now = self._use(key_id)
            use.num_active -= 1
            assert use.num_active >= 0
            use.add(now, tokens=tokens)

    def _use(self, key_id: str) -> tuple[_Use, float]:
        now = self._clock()
        use = self._uses.setdefault(key_id, _Use())
        use.forget_before(now)
        return use, now


@dataclass(slots=True)
class _Second:
    number: int
    """Seconds since 1970."""
    requests: int = 0
    tokens: int = 0

    def leaves_in_s(self, now: float) -> float:
        return self.number + WINDOW_S + 1 - now


class _Use:
    """What one key has used: in the window, today, and at this moment."""

    __slots__ = ("day", "day_requests", "day_tokens", "num_active", "requests", "seconds", "tokens")

    def __init__(self) -> None:
        self.num_active = 0
        self.seconds: deque[_Second] = deque()  # rising; the sums over them are the next two
        self.requests = 0
        self.tokens = 0
        self.day = 0
        self.day_requests = 0
        self.day_tokens = 0

    def forget_before(self, now: float) -> None:
        """Drop what the window and the day have left behind."""
        second = math.floor(now)
        day = second // _DAY_S
        if day > self.day:
            self.day_requests = self.day_tokens = 0
        # A clock that is set back keeps the day's counts, and empties a window it has left.
        self.day = day
        if self.seconds and self.seconds[-1].number > second + WINDOW_S:
            self.seconds.clear()
            self.requests = self.tokens = 0
        while self.seconds and second - self.seconds[0].number > WINDOW_S:
            gone = self.seconds.popleft()
            self.requests -= gone.requests
            self.tokens -= gone.tokens

    def add(self, now: float, *, requests: int = 0, tokens: int = 0) -> None:
        second = math.floor(now)
        if not self.seconds or self.seconds[-1].number < second:
            self.seconds.append(_Second(second))
        last = self.seconds[-1]
        last.requests += requests
        last.tokens += tokens
        self.requests += requests
        self.tokens += tokens
        self.day_requests += requests
        self.day_tokens += tokens

    def idle_in_s(self, now: float, what: str) -> float:
        """When nothing of ``what`` ("requests" or "tokens") is left in the window."""
        for second in reversed(self.seconds):
            if getattr(second, what):
                return second.leaves_in_s(now)
        return 0.0

    def below_in_s(self, now: float, what: str, limit: int) -> float:
        """When the window holds less than ``limit`` of ``what``, if nothing is added."""
        used: int = getattr(self, what)
        for second in self.seconds:
            used -= getattr(second, what)
            if used < limit:
                return second.leaves_in_s(now)
        raise AssertionError("an empty window is below every limit")


def _refusal(use: _Use, limits: Limits, now: float) -> ApiError | None:
    """Why this request may not come in: what lasts longest first."""
    days = (
        (limits.requests_per_day, use.day_requests, "requests"),
        (limits.tokens_per_day, use.day_tokens, "tokens"),
    )
    for limit, used, what in days:
        if limit is not None and used >= limit:
            return ApiError(
                "daily",
                f"This key may use {limit} {what} a day and has used them. The day ends at "
                "00:00 UTC.",
                retry_after_s=(use.day + 1) * _DAY_S - now,
            )
    waits = [
        (use.below_in_s(now, what, limit), limit, what) for limit, what in _passed(use, limits)
    ]
    if waits:
        wait_s, limit, what = max(waits)
        return ApiError(
            "rate",
            f"This key may use {limit} {what} a minute and has used them. Try again in "
            f"{math.ceil(wait_s)} s.",
            retry_after_s=wait_s,
        )
    if limits.concurrency is not None and use.num_active >= limits.concurrency:
        return ApiError(
            "concurrency",
            f"This key may have {limits.concurrency} requests under way at once. Wait for one to "
            "end.",
            retry_after_s=_CONCURRENCY_RETRY_S,
        )
    return None


def _passed(use: _Use, limits: Limits) -> Iterator[tuple[int, str]]:
    if limits.requests_per_minute is not None and use.requests >= limits.requests_per_minute:
        yield limits.requests_per_minute, "requests"
    if limits.tokens_per_minute is not None and use.tokens >= limits.tokens_per_minute:
        yield limits.tokens_per_minute, "tokens"


def _show_duration(seconds: float) -> str:
    """Whole seconds, rounded up, as OpenAI's headers have them: "1s", "6m0s", "23h59m0s"."""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minute}m{second}s"
    return f"{minute}m{second}s" if minute else f"{second}s"
