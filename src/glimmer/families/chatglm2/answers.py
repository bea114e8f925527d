"""ChatGLM2's answers: the text, tokenised apart from the prompt, and ``</s>``.

From ``preprocess_function_train`` of the official ptuning/main.py.
"""

from __future__ import annotations

from glimmer.chat import AnswerForm, Message
from glimmer.families.chatglm.answers import encode
from glimmer.families.chatglm2.tokenizer import end_of_text
from glimmer.tokenizers import Tokenizer


def _end(_message: Message, tokenizer: Tokenizer) -> int:
    return end_of_text(tokenizer)


ANSWERS = AnswerForm(encode, _end)
