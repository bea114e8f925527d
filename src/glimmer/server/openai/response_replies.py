"""The object of the Responses API, and its fields for the documentation of the interface."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from glimmer.outputs import RequestOutput, Usage
from glimmer.server.bodies import JsonObject
from glimmer.server.openai.response_requests import ResponseBody
from glimmer.server.replies import Reply


class ItemReply(Reply):
    type: Literal["message", "reasoning", "function_call"]
    id: str
    status: Literal["completed", "incomplete"]


class InputDetails(Reply):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Reply):
    reasoning_tokens: int


class ResponseUsage(Reply):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseReply(Reply):
    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete"]
    incomplete_details: dict[str, str] | None
    output: list[ItemReply]
    usage: ResponseUsage
    store: Literal[False]


def head(body: ResponseBody, name: str) -> JsonObject:
    """A response that has just begun."""
    form = body.text.format if body.text is not None else None
    told_form = (
        {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
    )
    effort = body.reasoning.effort if body.reasoning is not None else None
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_new_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": effort, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": told_form},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.checked_tools(),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def status_of(output: RequestOutput) -> str:
    return "incomplete" if output.finish_reason in ("length", "repetition") else "completed"


def ended(output: RequestOutput, items: Sequence[JsonObject], usage: Usage) -> JsonObject:
    """What the end of an answer changes in its response."""
    status = status_of(output)
    told: JsonObject = {"status": status, "output": list(items), "usage": _usage(usage)}
    if status == "completed":
        told["completed_at"] = int(time.time())
    else:
        # There is no word for a full context, nor for the end that the loop guard makes.
        told["incomplete_details"] = {"reason": "max_output_tokens"}
        if output.finish_reason == "repetition":
            told["incomplete_details"]["stop_reason"] = "repetition"
    return told


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        # Thoughts are told apart as text, not as tokens: their number is not known.
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
