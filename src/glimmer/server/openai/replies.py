"""The answers of OpenAI's dialect, for the documentation of the interface: `/docs`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Responses = dict[int | str, dict[str, Any]]


class Reply(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorDetails(Reply):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    error: ErrorDetails


class TokenDetails(Reply):
    cached_tokens: int


class UsageReply(Reply):
    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int
    prompt_tokens_details: TokenDetails | None = None


class FunctionReply(Reply):
    name: str
    arguments: str


class ToolCallReply(Reply):
    index: int
    id: str
    type: Literal["function"]
    function: FunctionReply


class MessageReply(Reply):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallReply] | None = None


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
    found: dict[str, Any] = {"model": model}
    if streams:
        found["content"] = {"text/event-stream": {"schema": {}}}
    return {200: found, "4XX": {"model": ErrorReply}, "5XX": {"model": ErrorReply}}
