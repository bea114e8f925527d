"""SmolLM2's answers: the text and ``<|im_end|>``."""

from __future__ import annotations

from glimmer.chat import AnswerForm, Message
from glimmer.chat.answers import NO_METADATA, NO_REASONING, refuse
from glimmer.errors import InvalidParameterError
from glimmer.families.smollm.tokenizer import MESSAGE_END
from glimmer.tokenizers import Tokenizer


def _encode(message: Message, tokenizer: Tokenizer) -> list[int]:
    refuse(message, "SmolLM2", metadata=NO_METADATA, reasoning=NO_REASONING)
    if message.tool_calls:
        raise InvalidParameterError(
            "SmolLM2 was not trained to call tools; take the calls out or use a GLM release."
        )
    return tokenizer.encode(message.content)


def _end(_message: Message, tokenizer: Tokenizer) -> int:
    return tokenizer.special_tokens[MESSAGE_END]


ANSWERS = AnswerForm(_encode, _end)
