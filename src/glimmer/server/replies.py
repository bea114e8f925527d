"""What the answers of all dialects are made of, for the documentation of the interface: `/docs`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Responses = dict[int | str, dict[str, Any]]


class Reply(BaseModel):
    model_config = ConfigDict(extra="allow")


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


def documented_with(
    model: type[Reply], refusal: type[Reply], *, streams: bool = False
) -> Responses:
    """What a route answers: whole, or as events too, or a refusal."""
    found: dict[str, Any] = {"model": model}
    if streams:
        found["content"] = {"text/event-stream": {"schema": {}}}
    return {200: found, "4XX": {"model": refusal}, "5XX": {"model": refusal}}
