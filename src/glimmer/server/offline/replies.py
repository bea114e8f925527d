"""The answers about files and batches, for the documentation of the interface."""

from __future__ import annotations

from typing import Literal

from glimmer.server.replies import Reply


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
