"""ChatGLM-6B's answers: the text and ``<eop>``.

From ``preprocess_function_train`` of the official ptuning/main.py. There the loss also counts
``<sop>``, which no model ever has to write: the prompt ends with it. Here it does not.
"""

from __future__ import annotations

from glimmer.chat import AnswerForm, Message, PromptBuilder
from glimmer.chat.answers import NO_METADATA, NO_REASONING, refuse
from glimmer.families.chatglm.rounds import answer_text
from glimmer.families.chatglm.tokenizer import END
from glimmer.tokenizers import Tokenizer


def encode(message: Message, tokenizer: Tokenizer) -> list[int]:
    """Tool calls are the line of JSON by which they are emulated; ChatGLM2 writes the same."""
    refuse(message, "this family", metadata=NO_METADATA, reasoning=NO_REASONING)
    answer = PromptBuilder(tokenizer)
    answer.content(answer_text(message))
    return answer.ids()


def _end(_message: Message, tokenizer: Tokenizer) -> int:
    return tokenizer.special_tokens[END]


ANSWERS = AnswerForm(encode, _end)
