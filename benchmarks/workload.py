"""The work that every engine is given, and the one clock that times it. Knows no engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

PREFILL_TOKENS = 512
PROMPT_TOKENS = 16
DECODE_TOKENS = 64
CONTEXT_TOKENS = 1024
"""Room for any of the above together."""
REPEATS = 3
"""Measurements per process, of which the median counts, after one that does not."""


class Engine(Protocol):
    """One sequence on one engine."""

    @property
    def vocab_size(self) -> int: ...

    def clear(self) -> None:
        """Forget the sequence."""
        ...

    def forward(self, token_ids: list[int]) -> int:
        """Append tokens in one batch; the likeliest next token."""
        ...


def random_ids(count: int, vocab_size: int, seed: int) -> list[int]:
    """Another seed for each measurement, so that no cache of prompts can help."""
    ids: list[int] = np.random.default_rng(seed).integers(vocab_size // 2, size=count).tolist()
    return ids


def median_of_repeats(measure: Callable[[int], float]) -> float:
    """The median of ``measure(seed)``, the first call left out: it pays for page faults."""
    return statistics.median([measure(seed) for seed in range(REPEATS + 1)][1:])


def prefill_tokens_per_s(engine: Engine) -> float:
    def measure(seed: int) -> float:
        ids = random_ids(PREFILL_TOKENS, engine.vocab_size, seed)
        engine.clear()
        start = time.perf_counter()
        engine.forward(ids)
        return PREFILL_TOKENS / (time.perf_counter() - start)

    return median_of_repeats(measure)


def decode_tokens_per_s(engine: Engine) -> float:
    def measure(seed: int) -> float:
        engine.clear()
        token_id = engine.forward(random_ids(PROMPT_TOKENS, engine.vocab_size, seed))
        start = time.perf_counter()
        for _ in range(DECODE_TOKENS):
            token_id = engine.forward([token_id])
        return DECODE_TOKENS / (time.perf_counter() - start)

    return median_of_repeats(measure)


def fill_context(engine: Engine) -> None:
    """A long prompt and an answer, in one sequence: what memory is measured with."""
    engine.clear()
    token_id = engine.forward(random_ids(PREFILL_TOKENS, engine.vocab_size, seed=0))
    for _ in range(DECODE_TOKENS):
        token_id = engine.forward([token_id])
