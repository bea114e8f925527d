"""ChatGLM3's answers: parts, each a line of metadata and content; metadata names a tool.

``process_response`` of the official modeling_chatglm.py reads a call by evaluating it as Python.
Here it is parsed, and nothing but literal arguments is a call.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from glimmer.chat import (
    CallNumbers,
    Event,
    ToolArgumentsDelta,
    ToolCallEnd,
    ToolSpec,
    visible,
)
from glimmer.chat.filters import Chain, Strip
from glimmer.families.chatglm.tool_parser import training_date
from glimmer.families.chatglm3.tokenizer import ASSISTANT

INTERPRETER = "interpreter"
"""ChatGLM3's own tool: its content is code."""


class Arguments(Protocol):
    """Turns the content of one call into the JSON of its arguments, piece by piece."""

    def push(self, text: str) -> str: ...

    def finish(self) -> str | None:
        """The rest; None if the content was no call after all, and nothing was given before."""
        ...


class PythonArguments:
    """``tool_call(a='x', b=[1, None])`` in a block of code. Python ends it, so it is read whole."""

    def __init__(self, name: str) -> None:
        self._is_code = name == INTERPRETER
        self._content = ""

    def push(self, text: str) -> str:
        self._content += text
        return ""

    def finish(self) -> str | None:
        # As the official code: what stands between the first and the last line.
        code = "\n".join(self._content.strip().split("\n")[1:-1])
        if self._is_code:
            return json.dumps({"code": code}, ensure_ascii=False)
        arguments = literal_arguments(code)
        return None if arguments is None else json.dumps(arguments, ensure_ascii=False)


def literal_arguments(code: str) -> dict[str, object] | None:
    """The keyword arguments of one call of ``tool_call``; None for anything else."""
    try:
        tree = ast.parse(code.strip(), mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            return None
        if tree.func.id != "tool_call" or tree.args:
            return None
        values = {k.arg: ast.literal_eval(k.value) for k in tree.keywords if k.arg is not None}
        if len(values) != len(tree.keywords):
            return None
        json.dumps(values)  # a set or bytes is a literal too, and no argument
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return values


class NamedCallParser:
    """An answer in parts: text, or a line with a tool's name and what the tool gets."""

    def __init__(self, names: Sequence[str], arguments_of: Callable[[str], Arguments]) -> None:
        """``arguments_of`` gives the reader of arguments for a tool, by its name."""
        self._names = frozenset(names)
        self._arguments_of = arguments_of
        self._numbers = CallNumbers()
        self._state: Literal["start", "text", "call"] = "start"
        self._held = ""  # a first line that may become a tool's name
        self._text = _text_filter()

    def push(self, text: str) -> list[Event]:
        if self._state == "call":
            return self._push_call(text)
        if self._state == "start":
            self._held += text
            line, newline, rest = self._held.partition("\n")
            name = line.strip()
            if newline and name in self._names:
                self._state = "call"
                self._call_text = self._held[: len(line) + 1]
                self._start = self._numbers.start(name)
                self._call = self._arguments_of(name)
                self._started = False
                return self._push_call(rest)
            if not newline and any(n.startswith(name) for n in self._names):
                return []
            text, self._held, self._state = self._held, "", "text"
        return visible(self._text.push(text))

    def control(self, token: str) -> list[Event]:
        """A part ends where the model takes its own turn once more."""
        if token != ASSISTANT:
            return []
        events = self.finish()
        self._begin()
        return events

    def finish(self) -> list[Event]:
        if self._state == "call":
            return self._finish_call()
        held, self._held = self._held, ""
        return visible(self._text.push(held) + self._text.finish())

    def _begin(self) -> None:
        self._state = "start"
        self._held = ""
        self._text = _text_filter()

    def _push_call(self, text: str) -> list[Event]:
        self._call_text += text
        return self._arguments(self._call.push(text))

    def _finish_call(self) -> list[Event]:
        self._state = "text"
        rest = self._call.finish()
        if rest is None:
            return visible(self._text.push(self._call_text) + self._text.finish())
        events = self._arguments(rest)
        if not self._started:
            self._started = True
            events.append(self._start)
        return [*events, ToolCallEnd(self._start.index)]

    def _arguments(self, piece: str) -> list[Event]:
        if not piece:
            return []
        events: list[Event] = [] if self._started else [self._start]
        self._started = True
        return [*events, ToolArgumentsDelta(self._start.index, piece)]


def _text_filter() -> Chain:
    return Chain((Strip(), training_date()))


def tool_parser(tools: Sequence[ToolSpec]) -> NamedCallParser:
    return NamedCallParser([*(tool.name for tool in tools), INTERPRETER], PythonArguments)
