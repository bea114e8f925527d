"""The contract of answer forms: a message out of a model's mouth as the ids that it writes.

A chat template gives the prompt; this gives what comes behind it, for training. Knows no family.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

from glimmer.chat.message import Message
from glimmer.errors import InvalidParameterError
from glimmer.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How a family's models write an answer, and how they end it."""

    encode: Callable[[Message, Tokenizer], list[int]]
    """The ids behind ``ChatTemplate.encode(messages before, add_generation_prompt=True)``, without
    the one that ends the answer. Raises InvalidParameterError for a message that the family's
    models cannot write."""
    end: Callable[[Message, Tokenizer], int]
    """The id by which a model ends this answer, where nothing follows it."""
    inner_ends: Callable[[Tokenizer], Set[int]] = lambda _tokenizer: frozenset()
    """The ids that may stand in that one's place where a conversation goes on, and that a model is
    to write there: the role that speaks next."""


def refuse(message: Message, family: str, *, metadata: str = "", reasoning: str = "") -> None:
    """Raise InvalidParameterError where a message holds what the family's models do not write.

    ``metadata`` and ``reasoning`` say what to do with each; without such advice it is allowed.
    """
    for what, value, advice in (
        ("metadata", message.metadata, metadata),
        ("reasoning_content", message.reasoning, reasoning),
    ):
        if value and advice:
            raise InvalidParameterError(
                f"The assistant's message has the {what} {value!r:.60}, which {family} does not "
                f"write. {advice}"
            )


NO_METADATA = "Give the call as tool_calls (or as a message of role tool with its parameters)."
NO_REASONING = "Take it out, or train a model that thinks first."
