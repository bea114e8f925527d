"""ChatGLM-6B's prompt: rounds, numbered from 0; a first question stands alone.

From ``ChatGLMForConditionalGeneration.chat`` of the official modeling_chatglm.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glimmer.chat import Message, PromptBuilder, ToolSpec, to_messages, to_tools
from glimmer.families.chatglm.rounds import emulation_notes, to_rounds
from glimmer.families.chatglm.tokenizer import GMASK, START
from glimmer.tokenizers import Tokenizer


class ChatGLMTemplate:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
        add_generation_prompt: bool = True,
        *,
        thinking: bool | None = None,
        allow_special: bool = False,
    ) -> list[int]:
        rounds = to_rounds(to_messages(messages), to_tools(tools))
        prompt = PromptBuilder(self._tokenizer, allow_special)
        if not rounds.history and rounds.query is not None:
            prompt.content(rounds.query)
        else:
            for i, (question, answer) in enumerate(rounds.history):
                prompt.content(f"[Round {i}]\n问：{question}\n答：{answer}\n")
            if rounds.query is not None:
                prompt.content(f"[Round {len(rounds.history)}]\n问：{rounds.query}")
                if add_generation_prompt:
                    prompt.content("\n答：")
        # The network needs both even where no answer is asked for: they end the context.
        prompt.token(GMASK)
        prompt.token(START)
        return prompt.ids()

    def notes(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
    ) -> tuple[str, ...]:
        return emulation_notes("ChatGLM-6B", to_messages(messages), to_tools(tools))
