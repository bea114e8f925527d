"""ChatGLM3's calls: a line with the tool's name, then ``tool_call(a='x')`` in a block of Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glimmer.chat import ToolSpec
from glimmer.chat.grammar import ANY_TEXT, in_order, literal, one_of

# Python's literals, as far as JSON has the same values.
_LITERALS = r"""any: STRING | NUMBER | constant | list | dict
constant: "True" | "False" | "None"
list: "[" (any (", " any)*)? "]"
dict: "{" (STRING ": " any (", " STRING ": " any)*)? "}"
STRING: /'([^'\\\n]|\\['"\\nrt])*'/
INTEGER: /-?(0|[1-9][0-9]*)/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/"""
_TYPES = {
    "string": "STRING",
    "integer": "INTEGER",
    "number": "NUMBER",
    "boolean": '("True" | "False")',
    "null": '"None"',
    "array": "list",
    "object": "dict",
}


def tool_grammar(tools: Sequence[ToolSpec]) -> str:
    calls: list[str] = []
    rules = [_LITERALS]
    for at, tool in enumerate(tools):
        begin = literal(f"{tool.name}\n```python\n")
        end = literal("\n```")
        if tool.function is None:  # its content is code
            calls.append(f"{begin} {ANY_TEXT} {end}")
            continue
        calls.append(f"{begin} {literal('tool_call(')} arguments_{at} {literal(')')} {end}")
        required = tool.schema.get("required")
        needed = set(required) if isinstance(required, list) else set()
        items = [
            (f"{literal(f'{name}=')} {_value(schema)}", name in needed)
            for name, schema in tool.parameters.items()
            if name.isidentifier()  # no other can be written
        ]
        rules += in_order(f"arguments_{at}", items, literal(", "))
    return one_of(calls, rules)


def _value(schema: object) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(options, list) and options:
        return "(" + " | ".join(literal(repr(option)) for option in options) + ")"
    kind = schema.get("type")
    return _TYPES.get(kind, "any") if isinstance(kind, str) else "any"
