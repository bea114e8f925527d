"""One message of a conversation, in OpenAI's shape. Knows no family and no ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from glimmer.errors import InvalidParameterError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InvalidParameterError(
                f"A message's role must be one of {', '.join(get_args(Role))}, "
                f"but it is {self.role!r}."
            )
        if not isinstance(self.content, str):
            raise InvalidParameterError(
                f"A message's content must be text, but it is {type(self.content).__name__}."
            )


def to_messages(messages: Sequence[Message | Mapping[str, object]]) -> list[Message]:
    """Messages from OpenAI-shaped mappings; those that are messages already are kept.

    Raises:
        InvalidParameterError: no message at all, an unknown role or key, content that is not text.
    """
    if not messages:
        raise InvalidParameterError("A chat needs at least one message, but there is none.")
    return [m if isinstance(m, Message) else _from_mapping(i, m) for i, m in enumerate(messages)]


def _from_mapping(index: int, mapping: Mapping[str, object]) -> Message:
    if set(mapping) != {"role", "content"}:
        raise InvalidParameterError(
            f"Message {index} must have the keys role and content, "
            f"but it has {', '.join(map(str, mapping)) or 'none'}."
        )
    return Message(mapping["role"], mapping["content"])  # type: ignore[arg-type]  # checked there
