"""What a caller gets back for one prompt."""

from __future__ import annotations

from dataclasses import dataclass

from glimmer.engine import FinishReason, TokenLogprobs
from glimmer.errors import GlimmerError


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens that did not have to be computed again."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds since the request was made."""

    time_to_first_token_s: float
    total_s: float
    prefill_tokens_per_s: float
    """Prompt tokens over the time to the first token."""
    decode_tokens_per_s: float | None
    """Tokens after the first over the time they took; None while there is only one."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answer to one prompt: whole, or as far as it has come when streamed."""

    index: int
    """Of the prompt among those given together."""
    token_ids: tuple[int, ...]
    """All tokens of the answer, the one that ended it included."""
    text: str
    """Their text, without what ended it."""
    delta: str
    """What this output adds to the text of the one before; all of it when not streamed."""
    finish_reason: FinishReason | None
    """None while the answer goes on."""
    logprobs: tuple[TokenLogprobs, ...] | None
    usage: Usage
    timing: Timing
    error: GlimmerError | None = None
    """Why finish_reason is "error"; the text is what came before."""
