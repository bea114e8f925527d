"""ChatGLM3's answers: a line of metadata and the content, and the token of the role that follows.

From ``format_conversation`` and ``MultiTurnDataset`` (preprocess_utils.py) and ``process_batch``
(finetune_hf.py) of the official finetune_demo: the loss counts what follows ``<|assistant|>`` and
one token more, which is the next role, or ``</s>`` at the end of a conversation. A call at the very
end is ended by ``<|observation|>`` here, for that is what makes a tool run.
"""

from __future__ import annotations

from glimmer.chat import AnswerForm, Message, PromptBuilder
from glimmer.chat.answers import NO_REASONING, refuse
from glimmer.families.chatglm2.tokenizer import end_of_text
from glimmer.families.chatglm3.chat_template import add_part, parts
from glimmer.families.chatglm3.tokenizer import ASSISTANT, OBSERVATION, USER
from glimmer.tokenizers import Tokenizer


def _encode(message: Message, tokenizer: Tokenizer) -> list[int]:
    refuse(message, "ChatGLM3", reasoning=NO_REASONING)
    answer = PromptBuilder(tokenizer)
    for place, (metadata, content) in enumerate(parts(message)):
        if place:  # it takes its own turn once more
            answer.token(ASSISTANT)
        add_part(answer, metadata, content)
    return answer.ids()


def _end(message: Message, tokenizer: Tokenizer) -> int:
    if message.tool_calls or message.metadata:
        return tokenizer.special_tokens[OBSERVATION]
    return end_of_text(tokenizer)


def inner_ends(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(tokenizer.special_tokens[role] for role in (USER, OBSERVATION, ASSISTANT))


ANSWERS = AnswerForm(_encode, _end, inner_ends)
