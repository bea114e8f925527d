"""One example: a conversation, what of it is trained, and for preferences the answer to avoid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from glimmer.chat import Message, ToolSpec
from glimmer.errors import InvalidParameterError


@dataclass(frozen=True, slots=True)
class Example:
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = field(default=(), compare=False)
    trained: tuple[bool, ...] = ()
    """For each message, whether the loss counts it. Only an assistant's can be."""
    rejected: Message | None = None
    """Of a preference: the worse answer, in the place of the last message, which is the better."""
    line: int = 0
    """Where it begins in its file, from 1."""
    record: int = 0
    """Which of its file's records it is, from 1."""
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Keys of the record that say nothing of the conversation, such as "id"."""

    def with_rejected(self) -> Example:
        """The same conversation with the worse answer at its end."""
        assert self.rejected is not None
        return replace(self, messages=(*self.messages[:-1], self.rejected), rejected=None)


def last_only(messages: Sequence[Message]) -> tuple[bool, ...]:
    """``trained`` where nothing counts but the last message."""
    return (*[False] * (len(messages) - 1), True)


def all_answers(messages: Sequence[Message]) -> tuple[bool, ...]:
    """``trained`` where every answer counts."""
    return tuple(message.role == "assistant" for message in messages)


def check(example: Example) -> None:
    """Raise InvalidParameterError if nothing can be learned from a conversation.

    It begins with the user, after any system messages, and ends with the assistant; a tool's result
    follows the assistant or another result; nobody but a system or a tool says nothing at all; and
    at least one answer is trained.
    """
    messages = example.messages
    assert len(example.trained) == len(messages)
    before = "system"
    for place, message in enumerate(messages):
        role, where = message.role, f"message {place}"
        if before == "system" and role not in ("system", "user"):
            raise InvalidParameterError(
                f"{where} has the role {role}, but the first message behind the system's must be "
                "the user's."
            )
        if role == "tool" and before not in ("assistant", "tool"):
            raise InvalidParameterError(
                f"{where} is a tool's result behind a message of role {before}; it must follow the "
                "assistant's call or another result."
            )
        if role == "user" and not message.content:
            raise InvalidParameterError(f"{where} (user) is empty.")
        if role != "assistant" and (message.tool_calls or message.reasoning):
            raise InvalidParameterError(
                f"{where} ({role}) has tool_calls or reasoning_content, which only the "
                "assistant's can."
            )
        before = role
    if before != "assistant":
        raise InvalidParameterError(
            f"the conversation ends with role {before}; it must end with the assistant's answer."
        )
    answers = [m for m in (*messages, example.rejected) if m is not None and m.role == "assistant"]
    if not all(m.content or m.tool_calls for m in answers):
        raise InvalidParameterError("an answer of the assistant is empty, and calls no tool.")
    if not any(example.trained):
        raise InvalidParameterError(
            "no answer is trained: every message of the assistant has loss false or weight 0."
        )
