"""ChatGLM3's prompt: a role token, a line of metadata and the content, each tokenised apart.

From ``build_chat_input`` and ``build_single_message`` of the official tokenization_chatglm.py. A
call is an assistant's message with the tool's name as metadata; its result has a role of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glimmer.chat import Message, PromptBuilder, ToolCall, ToolSpec, to_messages, to_tools
from glimmer.families.chatglm3.tokenizer import (
    ASSISTANT,
    GMASK,
    OBSERVATION,
    START,
    SYSTEM,
    USER,
)
from glimmer.tokenizers import Tokenizer

_ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": OBSERVATION}
_TOOLS_FOLLOW = (
    "Answer the following questions as best as you can. You have access to the following tools:"
)


class ChatGLM3Template:
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
        prompt = PromptBuilder(self._tokenizer, allow_special)
        prompt.token(GMASK)
        prompt.token(START)
        for message in _with_tools(to_messages(messages), to_tools(tools)):
            _add(prompt, message)
        if add_generation_prompt:
            prompt.token(ASSISTANT)
        return prompt.ids()

    def notes(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
    ) -> tuple[str, ...]:
        return ()


def _with_tools(messages: list[Message], tools: Sequence[ToolSpec]) -> list[Message]:
    """Tools that come beside the messages, as part of the system's message."""
    if not tools:
        return messages
    listed = json.dumps([_shown(tool) for tool in tools], indent=4, ensure_ascii=False)
    content = f"{_TOOLS_FOLLOW}\n{listed}"
    if messages[0].role != "system":
        return [Message("system", content), *messages]
    own = messages[0].content
    return [Message("system", f"{own}\n\n{content}" if own else content), *messages[1:]]


def _add(prompt: PromptBuilder, message: Message) -> None:
    for metadata, content in parts(message):
        prompt.token(_ROLES[message.role])
        add_part(prompt, metadata, content)


def parts(message: Message) -> list[tuple[str, str]]:
    """Metadata and content of each turn that a message takes: its text, and each call."""
    content = message.content
    if message.role == "system" and message.tools:
        listed = json.dumps([_shown(tool) for tool in message.tools], indent=4, ensure_ascii=False)
        content = f"{content}\n{listed}"
    text = [(message.metadata, content)] if content or not message.tool_calls else []
    return text + [(call.name, _call_text(call)) for call in message.tool_calls]


def add_part(prompt: PromptBuilder, metadata: str, content: str) -> None:
    prompt.content(f"{metadata}\n")
    prompt.cut()
    prompt.content(content)
    prompt.cut()


def _call_text(call: ToolCall) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.parsed().items())
    # The space before the code is what the model itself writes there.
    return f" ```python\ntool_call({arguments})\n```"


def _shown(tool: ToolSpec) -> Mapping[str, Any]:
    return tool.given if tool.function is None else tool.function
