"""GLM-4-0414's answers are GLM-4's; GLM-Z1's begin within the thought that the prompt opened.

There is no official fine-tuning code for either. That a thought stands on lines of its own is a
choice: Z1's chat template only tells that an answer comes behind ``</think>``.
"""

from __future__ import annotations

from dataclasses import replace

from glimmer.chat import AnswerForm, Message, PromptBuilder
from glimmer.chat.answers import NO_REASONING, refuse
from glimmer.families.chatglm3.answers import inner_ends
from glimmer.families.glm4.answers import add_parts, end
from glimmer.families.glm4_0414.chat_template import THINK, THINK_END
from glimmer.tokenizers import Tokenizer


def _encode(message: Message, tokenizer: Tokenizer) -> list[int]:
    refuse(message, "GLM-4-0414", reasoning=NO_REASONING)
    answer = PromptBuilder(tokenizer)
    add_parts(answer, message)
    return answer.ids()


def _encode_thinking(message: Message, tokenizer: Tokenizer) -> list[int]:
    """Without a thought, the answer ends at once the one that the prompt opened."""
    before, tag, visible = message.content.rpartition(THINK_END)
    thought = message.reasoning
    if thought is None and tag:
        thought = before.split(THINK)[-1]
    answer = PromptBuilder(tokenizer)
    if thought and thought.strip():
        answer.content(f"\n{thought.strip()}\n")
    answer.template(THINK_END)
    add_parts(answer, replace(message, content=visible.strip()))
    return answer.ids()


ANSWERS = AnswerForm(_encode, end, inner_ends)
THINKING_ANSWERS = AnswerForm(_encode_thinking, end, inner_ends)
