"""GLM-4-0414's prompt, and GLM-Z1's, which thinks first.

From the chat templates of the two (Z1's as published; 0414's differs in that it neither introduces
itself nor opens a thought). System messages come before all others; tools before them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from glimmer.chat import Message, PromptBuilder, ToolSpec, to_messages, to_tools
from glimmer.errors import InvalidParameterError
from glimmer.families.glm4.chat_template import FUNCTION_END, ROLES
from glimmer.families.glm4.tokenizer import ASSISTANT, GMASK, START, SYSTEM
from glimmer.tokenizers import Tokenizer

THINK, THINK_END = "<think>", "</think>"
_Z1_INTRODUCTION = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n"
)


class GLM0414Template:
    """``thinks``: the form of GLM-Z1."""

    def __init__(self, tokenizer: Tokenizer, thinks: bool = False) -> None:
        self._tokenizer = tokenizer
        self._thinks = thinks

    def encode(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
        add_generation_prompt: bool = True,
        *,
        thinking: bool | None = None,
        allow_special: bool = False,
    ) -> list[int]:
        turns = to_messages(messages)
        offered = [*to_tools(tools), *(tool for turn in turns for tool in turn.tools)]
        prompt = PromptBuilder(self._tokenizer, allow_special)
        prompt.token(GMASK)
        prompt.token(START)
        if offered:
            prompt.token(SYSTEM)
            prompt.content("\n" + (_Z1_INTRODUCTION if self._thinks else ""))
            prompt.content("# 可用工具" + "".join(map(_described, offered)))
        for turn in turns:
            if turn.role == "system" and (turn.content or not turn.tools):
                prompt.token(SYSTEM)
                prompt.content(f"\n{turn.content}")
        for turn in turns:
            if turn.role != "system":
                self._add(prompt, turn)
        if add_generation_prompt:
            prompt.token(ASSISTANT)
            if self._thinks:
                prompt.template(f"\n{THINK}")
        return prompt.ids()

    def _add(self, prompt: PromptBuilder, turn: Message) -> None:
        content = turn.content
        if self._thinks:  # thoughts of earlier answers are not shown again
            content = content.split(THINK_END)[-1].strip()
        if content or not turn.tool_calls:
            prompt.token(ROLES[turn.role])
            metadata = turn.metadata if turn.role == "assistant" else ""
            prompt.content(f"{metadata}\n{content}")
        for call in turn.tool_calls:
            prompt.token(ASSISTANT)
            prompt.content(f"{call.name}\n{call.arguments}")

    def notes(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
    ) -> tuple[str, ...]:
        return ()


def _described(tool: ToolSpec) -> str:
    if tool.function is None:
        raise InvalidParameterError(
            f"The tool {tool.name!r} is built into GLM-4-9B alone; this family takes functions."
        )
    listed = json.dumps(tool.function, indent=4, ensure_ascii=False)
    return f"\n## {tool.name}\n\n{listed}\n{FUNCTION_END}"
