"""The contract of chat templates: messages in, ids out. Knows no family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from glimmer.chat.message import Message, ToolSpec


class ChatTemplate(Protocol):
    def encode(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
        add_generation_prompt: bool = True,
        *,
        thinking: bool | None = None,
        allow_special: bool = False,
    ) -> list[int]:
        """The ids that the family's models were trained on for this conversation.

        The text of messages never becomes a control token, nor a token with which the template
        itself builds, unless ``allow_special`` asks for what the official code does. ``thinking``
        asks a model that can do both to think first or not; None leaves it to the model.

        Raises:
            InvalidParameterError: messages or tools that the family cannot express.
        """
        ...

    def notes(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
    ) -> tuple[str, ...]:
        """What a user should know of how these messages are expressed: emulation, mostly."""
        ...
