"""What a caller gets back for one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glimmer.chat import ToolArgumentsDelta, ToolCall, ToolCallEnd, ToolCallStart
from glimmer.engine import FinishReason as EngineFinishReason
from glimmer.engine import TokenLogprobs
from glimmer.errors import GlimmerError

FinishReason = EngineFinishReason | Literal["tool_calls"]
ToolCallEvent = ToolCallStart | ToolArgumentsDelta | ToolCallEnd


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
    reasoning: str | None = None
    """What the model thought before it answered, for models that do."""
    reasoning_delta: str = ""
    """What this output adds to ``reasoning``."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls so far; the arguments of the last may still grow when streamed."""
    tool_call_deltas: tuple[ToolCallEvent, ...] = ()
    """What this output adds to ``tool_calls``."""
    notes: tuple[str, ...] = ()
    """What to know of how the messages were expressed, such as an emulated system message."""
    error: GlimmerError | None = None
    """Why finish_reason is "error"; the text is what came before."""
    stop_text: str | None = None
    """Which of ``SamplingParams.stop`` ended the answer; None where another thing did."""
    choice: int = 0
    """0 for the first answer to a prompt, counting up where several were asked for."""
    choices: tuple[RequestOutput, ...] = ()
    """With ``n`` above 1 and not streamed: all answers to the prompt, this one first."""
