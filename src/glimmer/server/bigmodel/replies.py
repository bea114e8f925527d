"""The answers of BigModel's dialect, for the documentation of the interface."""

from __future__ import annotations

from typing import Literal

from glimmer.server.replies import MessageReply, Reply, Responses, UsageReply, documented_with


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
    return documented_with(model, PlatformErrorReply, streams=streams)
