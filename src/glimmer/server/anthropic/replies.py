"""Answers in Anthropic's form, whole; and their fields, for the documentation of the interface."""

from __future__ import annotations

import json
from typing import Any, Literal

from glimmer.outputs import RequestOutput, Usage
from glimmer.server.errors import ApiError
from glimmer.server.json_body import parse_json
from glimmer.server.replies import Reply, Responses, documented_with

SIGNATURE = "local"
"""Clients want a thought signed and send the signature back. Here it says nothing."""
_INVALID = "INVALID_JSON"
"""The key that Anthropic's documentation proposes for an input that is no JSON object."""


class ErrorDetails(Reply):
    type: str
    message: str


class ErrorReply(Reply):
    type: Literal["error"]
    error: ErrorDetails
    request_id: str


class TextBlock(Reply):
    type: Literal["text"]
    text: str


class ThinkingBlock(Reply):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(Reply):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class UsageReply(Reply):
    input_tokens: int
    """Those that were not found in the cache."""
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageReply(Reply):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: Literal[
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
    ]
    stop_sequence: str | None
    usage: UsageReply


class CountReply(Reply):
    input_tokens: int


def documented(model: type[Reply], *, streams: bool = False) -> Responses:
    """What a route answers, refusals included."""
    return documented_with(model, ErrorReply, streams=streams)


def blocks(output: RequestOutput) -> list[dict[str, Any]]:
    """The content of a whole answer: thoughts, text, calls."""
    found: list[dict[str, Any]] = []
    if output.reasoning:
        found.append({"type": "thinking", "thinking": output.reasoning, "signature": SIGNATURE})
    if output.text:
        found.append({"type": "text", "text": output.text})
    for call in output.tool_calls:
        given = tool_input(call.arguments)
        found.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
    return found


def tool_input(arguments: str) -> dict[str, Any]:
    """The object that a model wrote. What is none, as where max_tokens cut it, is kept as text
    under one key that no schema has: nothing is lost, and nobody takes it for arguments."""
    try:
        value = parse_json((arguments or "{}").encode())
        json.dumps(value, allow_nan=False)  # a number beyond all bounds reads as infinity
    except (ApiError, ValueError):
        value = None
    return value if isinstance(value, dict) else {_INVALID: arguments}


def stop(output: RequestOutput, max_tokens: int) -> dict[str, Any]:
    """Why an answer ended."""
    told: dict[str, Any] = {"stop_reason": "end_turn", "stop_sequence": output.stop_text}
    if output.stop_text is not None:
        told["stop_reason"] = "stop_sequence"
    elif output.finish_reason == "tool_calls":
        told["stop_reason"] = "tool_use"
    elif output.finish_reason == "length":
        told["stop_reason"] = "max_tokens"
        if output.usage.completion_tokens < max_tokens:
            told["stop_reason"] = "model_context_window_exceeded"
    elif output.finish_reason == "repetition":
        # The loop guard's end is told as "not complete", and by its name beside that.
        told.update(stop_reason="max_tokens", finish_reason="repetition")
    return told


def usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
