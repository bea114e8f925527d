"""The answers of OpenAI's dialect, for the documentation of the interface: `/docs`."""

from __future__ import annotations

from typing import Any, Literal

from glimmer.server.replies import MessageReply, Reply, Responses, UsageReply, documented_with


class ErrorDetails(Reply):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    error: ErrorDetails


class ChatChoice(Reply):
    index: int
    message: MessageReply
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: dict[str, Any] | None = None


class ChatCompletion(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply


class CompletionChoice(Reply):
    index: int
    text: str
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: dict[str, Any] | None = None


class Completion(Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReply


class FillReply(Reply):
    blank: str
    text: str
    finish_reason: Literal["stop", "length"]


class InfillChoice(Reply):
    index: int
    text: str
    fills: list[FillReply]
    finish_reason: Literal["stop", "length"]


class Infilling(Reply):
    id: str
    object: Literal["text_infilling"]
    created: int
    model: str
    choices: list[InfillChoice]
    usage: UsageReply


class Embedding(Reply):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(Reply):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: UsageReply


class ModelReply(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelReply]


class Tokens(Reply):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class Prompt(Reply):
    prompt: str


def documented(model: type[Reply], *, streams: bool = False) -> Responses:
    """What a route answers, refusals included."""
    return documented_with(model, ErrorReply, streams=streams)
