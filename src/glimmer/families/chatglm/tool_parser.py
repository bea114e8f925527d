"""ChatGLM-6B's answers: the official post-processing, and emulated tool calls.

``process_response`` of the official modeling_chatglm.py: the blank of the training date is filled,
and ASCII marks beside Chinese characters become Chinese marks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from glimmer.chat import (
    CallNumbers,
    Event,
    ToolArgumentsDelta,
    ToolCallEnd,
    ToolSpec,
    visible,
)
from glimmer.chat.filters import Chain, Replace, Strip, TextFilter

_MARKS = str.maketrans(",!:;?", "，！：；？")
_MAX_CALL = 100_000  # characters; longer text is no call


def training_date() -> Replace:
    return Replace("[[训练时间]]", "2023年")


class ChinesePunctuation:
    """A mark changes if a Chinese character stands before or after it."""

    def __init__(self) -> None:
        self._before = ""
        self._mark = ""  # waits for what follows it

    def push(self, text: str) -> str:
        out = []
        for character in text:
            if self._mark:
                out.append(self._mark.translate(_MARKS) if _is_chinese(character) else self._mark)
                self._mark = ""
            if ord(character) not in _MARKS:
                out.append(character)
            elif _is_chinese(self._before):
                out.append(character.translate(_MARKS))
            else:
                self._mark = character
            self._before = character
        return "".join(out)

    def finish(self) -> str:
        mark, self._mark = self._mark, ""
        return mark


def _is_chinese(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"


class RoundsParser:
    """Text through a filter; with tools, an answer that is one JSON call becomes that call."""

    def __init__(self, tools: Sequence[ToolSpec], filters: Sequence[TextFilter]) -> None:
        self._names = {tool.name for tool in tools}
        self._filter = Chain(filters)
        self._numbers = CallNumbers()
        self._held = ""
        self._may_be_call = bool(tools)

    def push(self, text: str) -> list[Event]:
        if self._may_be_call:
            self._held += text
            begun = self._held.lstrip()
            if not begun or (begun[0] == "{" and len(begun) < _MAX_CALL):
                return []
            self._may_be_call = False
            text, self._held = self._held, ""
        return visible(self._filter.push(text))

    def control(self, token: str) -> list[Event]:
        return []

    def finish(self) -> list[Event]:
        held, self._held = self._held, ""
        if (call := self._call(held.strip())) is not None:
            start = self._numbers.start(call[0])
            return [start, ToolArgumentsDelta(start.index, call[1]), ToolCallEnd(start.index)]
        return visible(self._filter.push(held) + self._filter.finish())

    def _call(self, text: str) -> tuple[str, str] | None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, dict):
            return None
        return value["name"], json.dumps(arguments, ensure_ascii=False)


def tool_parser(tools: Sequence[ToolSpec]) -> RoundsParser:
    return RoundsParser(tools, (Strip(), training_date(), ChinesePunctuation()))
