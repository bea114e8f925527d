"""The contract of answer parsers: a model's text in, visible text, thoughts and tool calls out.

What a model writes is data. Nothing in it is ever evaluated.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from glimmer.chat.message import ToolCall


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta:
    index: int
    json: str
    """A piece of the arguments; all pieces of a call joined are one JSON text."""


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    index: int


Event = TextDelta | ReasoningDelta | ToolCallStart | ToolArgumentsDelta | ToolCallEnd


class AnswerParser(Protocol):
    """Takes one answer piece by piece. However it is cut, the events joined are the same."""

    def push(self, text: str) -> list[Event]:
        """Events that became certain with this text."""
        ...

    def control(self, token: str) -> list[Event]:
        """The same for a control token, which is no text."""
        ...

    def finish(self) -> list[Event]:
        """Events for what was held back."""
        ...


def visible(text: str) -> list[Event]:
    """The event of visible text; none of no text."""
    return [TextDelta(text)] if text else []


class PlainParser:
    """All text is visible text."""

    def push(self, text: str) -> list[Event]:
        return visible(text)

    def control(self, token: str) -> list[Event]:
        return []

    def finish(self) -> list[Event]:
        return []


class CallNumbers:
    """Indices and fresh ids for the calls of one answer."""

    def __init__(self) -> None:
        self._indices: Iterator[int] = itertools.count()

    def start(self, name: str) -> ToolCallStart:
        return ToolCallStart(next(self._indices), f"call_{secrets.token_hex(12)}", name)


@dataclass(slots=True)
class ParsedAnswer:
    """The events of one answer, added up."""

    text: str = ""
    reasoning: str | None = None
    names: list[tuple[str, str]] = field(default_factory=list)
    """(id, name) of each call."""
    arguments: list[str] = field(default_factory=list)

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case TextDelta(text):
                    self.text += text
                case ReasoningDelta(text):
                    self.reasoning = (self.reasoning or "") + text
                case ToolCallStart(_, call_id, name):
                    self.names.append((call_id, name))
                    self.arguments.append("")
                case ToolArgumentsDelta(index, json):
                    self.arguments[index] += json

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(
            ToolCall(name, arguments, call_id)
            for (call_id, name), arguments in zip(self.names, self.arguments, strict=True)
        )
