"""GLM-4.5's answers: a thought in tags, the text, calls in tags, and the role that follows.

As the published chat template writes them behind ``<|assistant|>``; there is no official
fine-tuning code. An answer without a thought is trained with the empty one, ``<think></think>``: it
is what the model has to write in order to answer at once.
"""

from __future__ import annotations

from glimmer.chat import AnswerForm, Message, PromptBuilder
from glimmer.chat.answers import NO_METADATA, refuse
from glimmer.families.glm4.answers import end
from glimmer.families.glm4.tokenizer import OBSERVATION, USER
from glimmer.families.glm45.chat_template import add_answer
from glimmer.tokenizers import Tokenizer


def _encode(message: Message, tokenizer: Tokenizer) -> list[int]:
    refuse(message, "GLM-4.5", metadata=NO_METADATA)
    answer = PromptBuilder(tokenizer)
    add_answer(answer, message, with_thought=True)
    return answer.ids()


def _inner_ends(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(tokenizer.special_tokens[role] for role in (USER, OBSERVATION))


ANSWERS = AnswerForm(_encode, end, _inner_ends)
