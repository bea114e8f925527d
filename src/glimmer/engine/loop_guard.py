"""Tells when an answer has begun to say the same thing for ever."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glimmer.errors import InvalidParameterError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLimits:
    """An answer ends when one piece of it, of at most ``max_period`` tokens, stands
    ``min_repeats`` times in a row or more, and these take ``min_tokens`` tokens or more.

    Raises:
        InvalidParameterError: a value is out of its range.
    """

    min_repeats: int = 4
    min_tokens: int = 128
    max_period: int = 256

    def __post_init__(self) -> None:
        for name, least in (("min_repeats", 2), ("min_tokens", 2), ("max_period", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 65536:
                raise InvalidParameterError(
                    f"{name} must be a whole number from {least} to 65536, but it is {value!r}."
                )


class LoopGuard:
    """Follows one answer. For each period it counts how long the answer has repeated with it."""

    def __init__(self, limits: LoopLimits) -> None:
        periods = np.arange(1, limits.max_period + 1)
        # Tokens equal to the one a period earlier that make up what is too much.
        self._too_many = (
            np.maximum(limits.min_tokens, limits.min_repeats * periods) - periods
        ).clip(1)
        self._runs = np.zeros(limits.max_period, np.int64)
        # The last `max_period` tokens stand before `_end`, the latest last.
        self._tokens = np.full(4 * limits.max_period, -1, np.int64)
        self._end = limits.max_period

    def repeats(self, token_id: int) -> bool:
        """Take the next token; whether the answer runs in a circle."""
        period = len(self._runs)
        if self._end == len(self._tokens):
            self._tokens[:period] = self._tokens[-period:]
            self._end = period
        before = self._tokens[self._end - period : self._end][::-1]
        self._runs += 1
        self._runs *= before == token_id
        self._tokens[self._end] = token_id
        self._end += 1
        return bool((self._runs >= self._too_many).any())
