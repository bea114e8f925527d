"""The one line of JSON that ChatGLM-6B and ChatGLM2 are asked to call a tool with."""

from __future__ import annotations

import json
from collections.abc import Sequence

from glimmer.chat import ToolSpec
from glimmer.chat.grammar import arguments_rule, literal, one_of


def tool_grammar(tools: Sequence[ToolSpec]) -> str:
    calls = []
    for at, tool in enumerate(tools):
        name = json.dumps(tool.name, ensure_ascii=False)
        begin = literal(f'{{"name": {name}, "arguments": ')
        calls.append(f"{begin} arguments_{at} {literal('}')}")
    rules = [f"arguments_{at}: {arguments_rule(tool.schema)}" for at, tool in enumerate(tools)]
    return one_of(calls, rules)
