"""ChatGLM2's answers: white space goes, the training date comes; tool calls are emulated."""

from __future__ import annotations

from collections.abc import Sequence

from glimmer.chat import ToolSpec
from glimmer.chat.filters import Strip
from glimmer.families.chatglm.tool_parser import RoundsParser, training_date


def tool_parser(tools: Sequence[ToolSpec]) -> RoundsParser:
    return RoundsParser(tools, (Strip(), training_date()))
