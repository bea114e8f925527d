"""ChatGLM2's prompt: rounds, numbered from 1, all of them alike.

From ``ChatGLMTokenizer.build_prompt`` of the official tokenization_chatglm.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glimmer.chat import Message, PromptBuilder, ToolSpec, to_messages, to_tools
from glimmer.families.chatglm.rounds import emulation_notes, to_rounds
from glimmer.families.chatglm2.tokenizer import GMASK, START
from glimmer.tokenizers import Tokenizer


class ChatGLM2Template:
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
        prompt.token(GMASK)
        prompt.token(START)
        for i, (question, answer) in enumerate(rounds.history, 1):
            prompt.content(f"[Round {i}]\n\n问：{question}\n\n答：{answer}\n\n")
        if rounds.query is not None:
            prompt.content(f"[Round {len(rounds.history) + 1}]\n\n问：{rounds.query}")
            if add_generation_prompt:
                prompt.content("\n\n答：")
        return prompt.ids()

    def notes(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
    ) -> tuple[str, ...]:
        return emulation_notes("ChatGLM2", to_messages(messages), to_tools(tools))
