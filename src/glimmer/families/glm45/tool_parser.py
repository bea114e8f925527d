"""GLM-4.5's answers: a thought in tags, text, and calls in tags."""

from __future__ import annotations

import json
from collections.abc import Sequence

from glimmer.chat import (
    CallNumbers,
    Event,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallEnd,
    ToolCallStart,
    ToolSpec,
    visible,
)
from glimmer.chat.filters import Strip
from glimmer.families.glm45.tokenizer import (
    ARG_KEY,
    ARG_KEY_END,
    ARG_VALUE,
    ARG_VALUE_END,
    THINK,
    THINK_END,
    TOOL_CALL,
    TOOL_CALL_END,
)

# What may end each state, and the state that follows.
_NEXT = {
    "text": {THINK: "thought", TOOL_CALL: "name", THINK_END: "text"},
    "thought": {THINK_END: "text"},
    "name": {ARG_KEY: "key", TOOL_CALL_END: "text"},
    "key": {ARG_KEY_END: "call"},
    "call": {ARG_VALUE: "value", ARG_KEY: "key", TOOL_CALL_END: "text"},
    "value": {ARG_VALUE_END: "call"},
}


class TaggedParser:
    """Cuts an answer at its tags. A tag of another state is text like any other."""

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._numbers = CallNumbers()
        self._state = "text"
        self._held = ""  # may be the beginning of a tag
        self._value = ""  # name, key or value so far
        self._text, self._thought = Strip(), Strip()
        self._start: ToolCallStart | None = None
        self._key = ""
        self._num_arguments = 0

    def push(self, text: str) -> list[Event]:
        text, self._held = self._held + text, ""
        events: list[Event] = []
        while text:
            tags = _NEXT[self._state]
            found = [(at, tag) for tag in tags if (at := text.find(tag)) >= 0]
            if found:
                at, tag = min(found)
                events += self._take(text[:at])
                events += self._leave(tags[tag], tag)
                text = text[at + len(tag) :]
                continue
            held = max(_beginning(text, tag) for tag in tags)
            self._held = text[len(text) - held :]
            events += self._take(text[: len(text) - held])
            break
        return events

    def control(self, token: str) -> list[Event]:
        return []

    def finish(self) -> list[Event]:
        held, self._held = self._held, ""
        events = self._take(held)
        if self._state == "name":
            events += self._start_call()
        if self._start is not None:  # an answer that was cut off within a call
            events += self._end_call()
        return events

    def _take(self, text: str) -> list[Event]:
        """Text that belongs to the state."""
        if self._state == "text":
            return visible(self._text.push(text))
        if self._state == "thought":
            return [ReasoningDelta(kept)] if (kept := self._thought.push(text)) else []
        if self._state != "call":  # between the tags of a call is nothing but new lines
            self._value += text
        return []

    def _leave(self, following: str, tag: str) -> list[Event]:
        state, self._state = self._state, following
        value, self._value = self._value, ""
        if state == "name":
            self._value = value
            events = self._start_call()
            return [*events, *(self._end_call() if tag == TOOL_CALL_END else [])]
        if state == "key":
            self._key = value.strip()
        elif state == "value":
            return self._argument(value)
        elif tag == TOOL_CALL_END:
            return self._end_call()
        return []

    def _start_call(self) -> list[Event]:
        self._start = self._numbers.start(self._value.strip())
        self._value = ""
        self._num_arguments = 0
        return [self._start]

    def _argument(self, text: str) -> list[Event]:
        assert self._start is not None
        begin = ", " if self._num_arguments else "{"
        self._num_arguments += 1
        pair = {self._key: self._typed(text)}
        return [
            ToolArgumentsDelta(
                self._start.index, begin + json.dumps(pair, ensure_ascii=False)[1:-1]
            )
        ]

    def _end_call(self) -> list[Event]:
        assert self._start is not None
        index, self._start = self._start.index, None
        return [ToolArgumentsDelta(index, "}" if self._num_arguments else "{}"), ToolCallEnd(index)]

    def _typed(self, text: str) -> object:
        """Text where the schema says so; else JSON, and text where it is none."""
        assert self._start is not None
        tool = self._tools.get(self._start.name)
        schema = tool.parameters.get(self._key) if tool else None
        if isinstance(schema, dict) and schema.get("type") == "string":
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


def _beginning(text: str, tag: str) -> int:
    """Characters at the end of ``text`` with which ``tag`` may begin."""
    longest = min(len(text), len(tag) - 1)
    return next(n for n in range(longest, -1, -1) if tag.startswith(text[len(text) - n :]))


def tool_parser(tools: Sequence[ToolSpec]) -> TaggedParser:
    return TaggedParser(tools)
