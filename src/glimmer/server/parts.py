"""A streamed answer as parts: thoughts, text and calls, each of which ends before the next begins.
Two dialects tell it so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from glimmer.chat import ToolArgumentsDelta, ToolCallStart
from glimmer.outputs import RequestOutput

PartKind = Literal["thought", "text", "call"]


@dataclass(frozen=True, slots=True)
class PartStart:
    kind: PartKind
    call: ToolCallStart | None = None
    """Of a call."""


@dataclass(frozen=True, slots=True)
class PartDelta:
    text: str
    """More of a thought, a text or the arguments of a call."""


@dataclass(frozen=True, slots=True)
class PartEnd:
    pass


PartEvent = PartStart | PartDelta | PartEnd


class Parts:
    """Takes the outputs of a stream."""

    def __init__(self) -> None:
        self._open: PartKind | None = None
        self._words: list[tuple[PartKind, str]] = []
        """What has come and was not told yet."""

    def add(self, output: RequestOutput) -> Iterator[PartEvent]:
        self._words += [("thought", output.reasoning_delta), ("text", output.delta)]
        yield from self._say()
        for item in output.tool_call_deltas:
            match item:
                case ToolCallStart():
                    yield from self._end()
                    self._open = "call"
                    yield PartStart("call", item)
                case ToolArgumentsDelta(_, text):
                    if text:
                        yield PartDelta(text)
                case _:
                    yield from self._end()
        if output.finish_reason is not None and self._open == "call":
            yield from self._end()  # it was cut
        yield from self._say()
        if output.finish_reason is not None:
            yield from self._end()

    def _say(self) -> Iterator[PartEvent]:
        """An output holds what several steps brought: words beside an open call came after it."""
        if self._open == "call":
            return
        for kind, text in self._words:
            if not text:
                continue
            if self._open != kind:
                yield from self._end()
                self._open = kind
                yield PartStart(kind)
            yield PartDelta(text)
        self._words.clear()

    def _end(self) -> Iterator[PartEvent]:
        if self._open is not None:
            self._open = None
            yield PartEnd()
