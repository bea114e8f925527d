"""Pieces of grammars in the Lark dialect of ``llguidance``, for the tool calls of the families."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

# Some space between the parts of a JSON text, as models write it, but no endless one.
_LAYOUT = {"whitespace_pattern": r"\n?[ ]{0,32}"}
_PLAIN_LAYOUT = {
    "whitespace_flexible": False,
    "item_separator": r",\n?[ ]{0,32}",
    "key_separator": r":[ ]{0,32}",
}
ANY_TEXT = "/(?s:.+)/"


def literal(text: str) -> str:
    """A text that must stand there."""
    return json.dumps(text)


def with_json_layout(schema: object) -> object:
    """A schema whose JSON may be laid out, but not stretched for ever."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict) or "x-guidance" in schema:
        return schema
    return {**schema, "x-guidance": _LAYOUT}


def with_plain_layout(grammar: str) -> str:
    """The same for older versions of the library (1.7, which vLLM 0.32 has), where only separators
    can be bounded: blanks behind commas and colons, and nowhere else."""
    return grammar.replace(json.dumps(_LAYOUT), json.dumps(_PLAIN_LAYOUT))


def json_rule(schema: Mapping[str, object]) -> str:
    """JSON that a schema describes."""
    return "%json " + json.dumps(with_json_layout(dict(schema)))


def arguments_rule(schema: Mapping[str, object]) -> str:
    """A call's arguments as JSON: an object, with nothing in it that the tool does not know."""
    return json_rule({"properties": {}, "additionalProperties": False, **schema, "type": "object"})


def one_of(calls: Sequence[str], rules: Iterable[str] = ()) -> str:
    """A grammar of one of these calls."""
    numbered = [f"call_{at}: {call}" for at, call in enumerate(calls)]
    start = "start: " + " | ".join(f"call_{at}" for at in range(len(calls)))
    return "\n".join([start, *numbered, *rules]) + "\n"


def in_order(name: str, items: Sequence[tuple[str, bool]], separator: str) -> list[str]:
    """Rules, the first called ``name``: items in this order, each left out unless it is needed.

    ``items`` are (rule, needed), ``separator`` is a rule as well.
    """
    rules = [f"{name}: {name}_0_first"]
    for at, (item, needed) in enumerate(items):
        for place, with_item in (("first", item), ("more", f"{separator} {item}")):
            other = "" if needed else f" | {name}_{at + 1}_{place}"
            rules.append(f"{name}_{at}_{place}: {with_item} {name}_{at + 1}_more{other}")
    return [*rules, *(f'{name}_{len(items)}_{place}: ""' for place in ("first", "more"))]
