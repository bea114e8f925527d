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


class FileReply(Reply):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str


class FileList(Reply):
    object: Literal["list"]
    data: list[FileReply]
    has_more: bool


class FileGone(Reply):
    id: str
    object: Literal["file"]
    deleted: bool


class Counts(Reply):
    total: int
    completed: int
    failed: int


class BatchReply(Reply):
    id: str
    object: Literal["batch"]
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "cancelling", "cancelled"
    ]
    created_at: int
    request_counts: Counts
    output_file_id: str | None = None
    error_file_id: str | None = None


class BatchList(Reply):
    object: Literal["list"]
    data: list[BatchReply]
    has_more: bool


def documented(model: type[Reply], *, streams: bool = False) -> Responses:
    """What a route answers, refusals included."""
    found: dict[str, Any] = {"model": model}
    if streams:
        found["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: found, "4XX": {"model": PlatformErrorReply}, "5XX": {"model": PlatformErrorReply}}
