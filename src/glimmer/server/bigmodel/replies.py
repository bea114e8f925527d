"""The answers of BigModel's dialect, for the documentation of the interface."""

from __future__ import annotations

from typing import Any, Literal

from glimmer.server.openai.replies import MessageReply, Reply, Responses, UsageReply


class PlatformError(Reply):
    code: str
    message: str


class PlatformErrorReply(Reply):
    error: PlatformError


class ChoiceReply(Reply):
    index: int
    finish_reason: Literal["stop", "length", "tool_calls"]
    message: MessageReply


class ChatReply(Reply):
    id: str
    request_id: str
    created: int
    model: str
    choices: list[ChoiceReply]
    usage: UsageReply


class TaskReply(Reply):
    id: str
    request_id: str
    model: str
    task_status: Literal["PROCESSING", "SUCCESS", "FAIL"]
    choices: list[ChoiceReply] | None = None
    usage: UsageReply | None = None


def documented(model: type[Reply], *, streams: bool = False) -> Responses:
    """What a route answers, refusals included."""
    found: dict[str, Any] = {"model": model}
    if streams:
        found["content"] = {"text/event-stream": {"schema": {}}}
    return {200: found, "4XX": {"model": PlatformErrorReply}, "5XX": {"model": PlatformErrorReply}}
