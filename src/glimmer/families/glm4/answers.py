"""GLM-4's answers: metadata, a new line and the content, and the token of the role that follows.

From ``process_batch`` of the official finetune_demo (THUDM/GLM-4): the loss counts what follows
``<|assistant|>`` and one token more, which is the next role. At the end of a conversation that is
``<|user|>`` (151336), as the later official code has it; its first version took ``<|endoftext|>``.
A call at the very end is ended by ``<|observation|>``, for that is what makes a tool run.
"""

from __future__ import annotations

from glimmer.chat import AnswerForm, Message, PromptBuilder
from glimmer.chat.answers import NO_REASONING, refuse
from glimmer.families.chatglm3.answers import inner_ends
from glimmer.families.glm4.tokenizer import ASSISTANT, OBSERVATION, USER
from glimmer.tokenizers import Tokenizer


def add_parts(answer: PromptBuilder, message: Message) -> None:
    """The text, then each call, as GLM-4 and GLM-4-0414 write them."""
    calls = [(call.name, call.arguments) for call in message.tool_calls]
    text = [(message.metadata, message.content)] if message.content or not calls else []
    for place, (metadata, content) in enumerate([*text, *calls]):
        if place:  # it takes its own turn once more
            answer.token(ASSISTANT)
        answer.content(f"{metadata}\n{content}")


def end(message: Message, tokenizer: Tokenizer) -> int:
    calls = message.tool_calls or message.metadata
    return tokenizer.special_tokens[OBSERVATION if calls else USER]


def _encode(message: Message, tokenizer: Tokenizer) -> list[int]:
    refuse(message, "GLM-4", reasoning=NO_REASONING)
    answer = PromptBuilder(tokenizer)
    add_parts(answer, message)
    return answer.ids()


ANSWERS = AnswerForm(_encode, end, inner_ends)
