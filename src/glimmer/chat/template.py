"""The contract of chat templates: messages in, ids out. Knows no family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from glimmer.chat.message import Message


class ChatTemplate(Protocol):
    def encode(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The ids that the family's models were trained on for this conversation.

        The text of messages never becomes a control token.

        Raises:
            InvalidParameterError: messages or tools that the family cannot express.
        """
        ...
