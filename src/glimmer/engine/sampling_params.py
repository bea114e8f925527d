"""How one request chooses its tokens. Stop strings, constraint and ``best_of`` are for those above:
the engine knows no text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from glimmer.engine.constraint import Constraint
from glimmer.engine.loop_guard import LoopLimits
from glimmer.errors import InvalidParameterError

MAX_LOGPROBS = 20
MAX_ANSWERS = 128
MAX_SEED = 2**64 - 1


def _check(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise InvalidParameterError(f"{name} must be {allowed}, but it is {value!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling values of one request; checked when made.

    The order of operations is: logit bias, repetition, presence and frequency penalties,
    temperature, min_p, top_k, top_p, draw. ``temperature=0`` is greedy.

    Raises:
        InvalidParameterError: a value is out of its range.
    """

    temperature: float = 0.8
    top_p: float = 0.8
    """Smallest set of likeliest tokens whose probabilities reach this sum; 1 keeps all."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest token's probability."""
    max_new_tokens: int = 512
    seed: int | None = None
    """Same seed, same tokens, whatever else runs; None draws a fresh one."""
    n: int = 1
    """Answers to one prompt, drawn with seeds that count up from ``seed``."""
    best_of: int | None = None
    """Draw so many and give the ``n`` with the highest mean log probability; None for ``n``."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """Log probabilities of the chosen token and of this many likeliest ones, before any penalty."""
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or the answer."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token that is in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it is in the answer."""
    constraint: Constraint | None = None
    """The form that the answer must have."""
    loop_guard: LoopLimits | bool | None = None
    """Whether an answer that runs in a circle is ended, with "repetition", and from when on; None
    for what is usual: in a chat, and not where raw text is continued."""
    speculation: bool = True
    """Draft tokens from the text where that saves time; never changes the answer."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))
        for name, low, high, allowed in (
            ("temperature", 0.0, 100.0, "between 0 (greedy) and 100"),
            ("min_p", 0.0, 1.0, "between 0 and 1"),
            ("presence_penalty", -2.0, 2.0, "between -2 and 2"),
            ("frequency_penalty", -2.0, 2.0, "between -2 and 2"),
        ):
            value = getattr(self, name)
            _check(_is_number(value) and low <= value <= high, name, value, allowed)
        _check(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p,
               "above 0 and at most 1")  # fmt: skip
        _check(_is_number(self.repetition_penalty) and 0 < self.repetition_penalty <= 10,
               "repetition_penalty", self.repetition_penalty, "above 0 and at most 10")  # fmt: skip
        _check(_is_int(self.top_k) and self.top_k >= 0, "top_k", self.top_k,
               "a whole number, 0 (keep all) or more")  # fmt: skip
        _check(_is_int(self.max_new_tokens) and self.max_new_tokens >= 1, "max_new_tokens",
               self.max_new_tokens, "a whole number, 1 or more")  # fmt: skip
        _check(self.seed is None or (_is_int(self.seed) and 0 <= self.seed <= MAX_SEED), "seed",
               self.seed, f"None or a whole number from 0 to {MAX_SEED}")  # fmt: skip
        _check(_is_int(self.n) and 1 <= self.n <= MAX_ANSWERS, "n", self.n,
               f"a whole number from 1 to {MAX_ANSWERS}")  # fmt: skip
        _check(self.best_of is None
               or (_is_int(self.best_of) and self.n <= self.best_of <= MAX_ANSWERS), "best_of",
               self.best_of, f"None or a whole number from n to {MAX_ANSWERS}")  # fmt: skip
        _check(self.constraint is None or isinstance(self.constraint, Constraint), "constraint",
               self.constraint, "None or a glimmer.Constraint")  # fmt: skip
        _check(self.loop_guard is None or isinstance(self.loop_guard, (bool, LoopLimits)),
               "loop_guard", self.loop_guard,
               "None, True, False or a glimmer.LoopLimits")  # fmt: skip
        _check(self.logprobs is None
               or (_is_int(self.logprobs) and 0 <= self.logprobs <= MAX_LOGPROBS), "logprobs",
               self.logprobs, f"None or a whole number from 0 to {MAX_LOGPROBS}")  # fmt: skip
        for text in self.stop:
            _check(isinstance(text, str) and text != "", "stop", text, "non-empty strings")
        for token in self.stop_token_ids:
            _check(_is_int(token) and token >= 0, "stop_token_ids", token, "token ids, 0 or more")
        for token, bias in self.logit_bias.items():
            _check(_is_int(token) and token >= 0, "logit_bias key", token, "a token id, 0 or more")
            _check(_is_number(bias) and -100 <= bias <= 100, "logit_bias value", bias,
                   "between -100 and 100")  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
