"""The work that every engine is given, and the one clock that times it. Knows no engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

PREFILL_TOKENS = 512
PROMPT_TOKENS = 16
DECODE_TOKENS = 64
ROOM_TOKENS = 1024
"""Room for any of the above together."""
CONTEXT_PROMPT_TOKENS = 256
"""What is read of a long context; the rest is copies of it."""
CONTEXT_DECODE_TOKENS = 32
"""Behind a long context, however long that is."""
BATCH_PROMPT_TOKENS = 128
BATCH_ANSWER_TOKENS = 64
"""Of each sequence in a batch."""
BATCH_SIZES = (1, 4, 8, 16, 32)
REPEATS = 3
"""Measurements per process by default, of which the median counts, after one that does not."""


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


def median_of_repeats(measure: Callable[[int], float], repeats: int) -> float:
    """The median of ``measure(seed)``, the first call left out: it pays for page faults."""
    return statistics.median([measure(seed) for seed in range(repeats + 1)][1:])


def prefill_tokens_per_s(engine: Engine, repeats: int) -> float:
    def measure(seed: int) -> float:
        ids = random_ids(PREFILL_TOKENS, engine.vocab_size, seed)
        engine.clear()
        start = time.perf_counter()
        engine.forward(ids)
        return PREFILL_TOKENS / (time.perf_counter() - start)

    return median_of_repeats(measure, repeats)


def decode_tokens_per_s(engine: Engine, repeats: int) -> float:
    def measure(seed: int) -> float:
        engine.clear()
        token_id = engine.forward(random_ids(PROMPT_TOKENS, engine.vocab_size, seed))
        start = time.perf_counter()
        for _ in range(DECODE_TOKENS):
            token_id = engine.forward([token_id])
        return DECODE_TOKENS / (time.perf_counter() - start)

    return median_of_repeats(measure, repeats)


class ContextEngine(Engine, Protocol):
    """An engine whose cache can be filled without computing it."""

    def extend(self, length: int) -> None:
        """Make the sequence so long, with copies of the keys and values of its first
        ``CONTEXT_PROMPT_TOKENS`` tokens, of which ``length`` is a multiple."""
        ...


def context_tokens_per_s(engine: ContextEngine, contexts: Sequence[int]) -> dict[int, float]:
    """Decoding behind so many tokens: what a step takes does not depend on their values."""
    engine.clear()
    ids = random_ids(CONTEXT_PROMPT_TOKENS, engine.vocab_size, seed=1)
    token_id, found = engine.forward(ids), {}
    for context in contexts:
        engine.extend(context)
        token_id = engine.forward([token_id])  # pays for page faults, and for keys that are moved
        start = time.perf_counter()
        for _ in range(CONTEXT_DECODE_TOKENS):
            token_id = engine.forward([token_id])
        found[context] = CONTEXT_DECODE_TOKENS / (time.perf_counter() - start)
    return found


class BatchEngine(Protocol):
    """Many sequences on one engine."""

    @property
    def vocab_size(self) -> int: ...

    def generate(self, prompts: list[list[int]], num_tokens: int) -> None:
        """Read all prompts and generate so many tokens after each."""
        ...


def batch_tokens_per_s(engine: BatchEngine) -> dict[int, float]:
    """Generated tokens per second, from the first prompt to the last token, by sequences."""

    def measure(size: int, seed: int) -> float:
        prompts = [
            random_ids(BATCH_PROMPT_TOKENS, engine.vocab_size, seed=1000 * seed + i)
            for i in range(size)
        ]
        start = time.perf_counter()
        engine.generate(prompts, BATCH_ANSWER_TOKENS)
        return size * BATCH_ANSWER_TOKENS / (time.perf_counter() - start)

    measure(4, 0)  # pays for page faults
    return {size: measure(size, seed=size) for size in BATCH_SIZES}


def fill_context(engine: Engine) -> None:
    """A long prompt and an answer, in one sequence: what memory is measured with."""
    engine.clear()
    token_id = engine.forward(random_ids(PREFILL_TOKENS, engine.vocab_size, seed=0))
    for _ in range(DECODE_TOKENS):
        token_id = engine.forward([token_id])
