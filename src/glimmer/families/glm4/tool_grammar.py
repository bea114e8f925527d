"""GLM-4's calls: a line with the tool's name, then its arguments as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from glimmer.chat import ToolSpec
from glimmer.chat.grammar import ANY_TEXT, arguments_rule, literal, one_of


def tool_grammar(tools: Sequence[ToolSpec]) -> str:
    calls = [literal(tool.name + "\n") + f" arguments_{at}" for at, tool in enumerate(tools)]
    rules = [
        f"arguments_{at}: {ANY_TEXT if tool.function is None else arguments_rule(tool.schema)}"
        for at, tool in enumerate(tools)
    ]
    return one_of(calls, rules)
