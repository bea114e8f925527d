"""GLM-4-0414's answers are GLM-4's; GLM-Z1's begin within a thought that the prompt opened."""

from __future__ import annotations

from collections.abc import Sequence

from glimmer.chat import AnswerParser, Event, ReasoningDelta, ToolSpec
from glimmer.chat.filters import Strip
from glimmer.families.chatglm3.tool_parser import NamedCallParser
from glimmer.families.glm4.tool_parser import JsonArguments
from glimmer.families.glm4_0414.chat_template import THINK_END


class ThoughtFirst:
    """Up to the end of the thought all is reasoning; the rest is another parser's."""

    def __init__(self, rest: AnswerParser, end: str = THINK_END) -> None:
        self._rest = rest
        self._end = end
        self._held = ""
        self._strip = Strip()
        self._thinking = True

    def push(self, text: str) -> list[Event]:
        if not self._thinking:
            return self._rest.push(text)
        thought, end, answer = (self._held + text).partition(self._end)
        if end:
            self._thinking = False
            return [*_thought(self._strip.push(thought)), *self._rest.push(answer)]
        kept = next(
            n for n in range(min(len(thought), len(self._end) - 1), -1, -1)
            if self._end.startswith(thought[len(thought) - n :])
        )  # fmt: skip
        self._held = thought[len(thought) - kept :]
        return _thought(self._strip.push(thought[: len(thought) - kept]))

    def control(self, token: str) -> list[Event]:
        return [] if self._thinking else self._rest.control(token)

    def finish(self) -> list[Event]:
        if self._thinking:
            return _thought(self._strip.push(self._held))
        return self._rest.finish()


def _thought(text: str) -> list[Event]:
    return [ReasoningDelta(text)] if text else []


def tool_parser(tools: Sequence[ToolSpec], thinks: bool = False) -> AnswerParser:
    parser = NamedCallParser([tool.name for tool in tools], JsonArguments)
    return ThoughtFirst(parser) if thinks else parser
