"""What the engine is asked for. Token ids only: the engine knows no text."""

from __future__ import annotations

from dataclasses import dataclass

from glimmer.engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Request:
    request_id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int]
    """Ids that end the answer and belong to it; empty with ``ignore_eos``."""
    seed: int
    """The request's own seed, or a fresh one: what the random numbers are made from."""
