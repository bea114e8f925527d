"""GLM-4's answers: ChatGLM3's parts, with JSON for arguments.

From ``process_response`` of the official demo (THUDM/GLM-4).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from glimmer.chat import ToolSpec
from glimmer.families.chatglm3.tool_parser import NamedCallParser
from glimmer.families.glm4.chat_template import BUILT_IN


class JsonArguments:
    """The content is the JSON: it passes through as it comes."""

    def __init__(self, name: str) -> None:
        self._begun = False
        self._space = ""

    def push(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        return kept

    def finish(self) -> str | None:
        return "" if self._begun else "{}"


class CodeArguments:
    """A built-in tool gets its content as it is: as the one text of an object."""

    def __init__(self, name: str) -> None:
        self._begun = False

    def push(self, text: str) -> str:
        begin = "" if self._begun or not text else '{"content": "'
        self._begun = self._begun or bool(text)
        return begin + json.dumps(text, ensure_ascii=False)[1:-1]

    def finish(self) -> str | None:
        return '"}' if self._begun else '{"content": ""}'


def arguments_of(name: str) -> JsonArguments | CodeArguments:
    return CodeArguments(name) if name in BUILT_IN else JsonArguments(name)


def tool_parser(tools: Sequence[ToolSpec]) -> NamedCallParser:
    # A text begins with a new line: a first line with the name of its own tool is always a call.
    return NamedCallParser([*(tool.name for tool in tools), *BUILT_IN], arguments_of)
