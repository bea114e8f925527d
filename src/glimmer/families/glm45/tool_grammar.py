"""GLM-4.5's calls: one or more, name, keys and values in tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glimmer.chat import ToolSpec
from glimmer.chat.grammar import in_order, json_rule, literal
from glimmer.families.glm45.tokenizer import (
    ARG_KEY,
    ARG_KEY_END,
    ARG_VALUE,
    ARG_VALUE_END,
    TOOL_CALL,
    TOOL_CALL_END,
)


def tool_grammar(tools: Sequence[ToolSpec]) -> str:
    rules = ['start: "\\n"? call ("\\n" call)*']
    rules.append("call: " + " | ".join(f"call_{at}" for at in range(len(tools))))
    for at, tool in enumerate(tools):
        begin, end = literal(f"{TOOL_CALL}{tool.name}\n"), literal(TOOL_CALL_END)
        rules.append(f"call_{at}: {begin} arguments_{at} {end}")
        required = tool.schema.get("required")
        needed = set(required) if isinstance(required, list) else set()
        items = []
        for number, (name, schema) in enumerate(tool.parameters.items()):
            value = f"value_{at}_{number}"
            rules.append(_value_rule(value, schema, tool.schema))
            key = literal(f"{ARG_KEY}{name}{ARG_KEY_END}\n{ARG_VALUE}")
            items.append((f'{key} {value} "\\n"', name in needed))
        rules += in_order(f"arguments_{at}", items, literal(""))
    return "\n".join(rules) + "\n"


def _value_rule(rule: str, schema: object, parent: Mapping[str, object]) -> str:
    """Text as it is where the schema says so, else JSON; the closing tag included."""
    if isinstance(schema, Mapping):
        options = schema.get("enum")
        if isinstance(options, list) and options and all(isinstance(o, str) for o in options):
            texts = " | ".join(literal(option) for option in options)
            return f"{rule}: ({texts}) {literal(ARG_VALUE_END)}"
        if schema.get("type") == "string":
            return f"{rule}[suffix={literal(ARG_VALUE_END)}]: /(?s:.*)/"
    known = dict(schema) if isinstance(schema, Mapping) else {}
    shared = {key: parent[key] for key in ("$defs", "definitions") if key in parent}
    return f"{rule}: {rule}_json {literal(ARG_VALUE_END)}\n{rule}_json: {json_rule(known | shared)}"
