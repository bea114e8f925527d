"""sharegpt: conversations of from and value, as LLaMA-Factory reads them.

All answers are trained, unless a turn has the weight 0. A call is a turn of its own, whose value is
JSON; so are the tools. With chosen and rejected beside the conversation it is a preference
("ranking"), and the conversation ends with the user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from glimmer.chat import Message, Role, ToolCall
from glimmer.errors import InvalidParameterError
from glimmer.training.data.example import Example, last_only
from glimmer.training.data.forms import fields, limits
from glimmer.training.data.forms.form import Columns, Form, Json

NAME = "sharegpt"
_ROLES: Mapping[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "function_call": "assistant", "observation": "tool", "tool": "tool", "system": "system",
}  # fmt: skip
_KEYS = frozenset({"from", "value", "weight"})


def _matches(record: Json, _columns: Columns) -> bool:
    turns = record.get("conversations")
    return isinstance(turns, list) and any(isinstance(t, dict) and "from" in t for t in turns)


def _read(record: Json, _columns: Columns) -> list[Example]:
    messages, flags = fields.system(record), [False] * len(fields.system(record))
    for place, turn in enumerate(fields.objects(record, "conversations")):
        where = f"conversations[{place}]"
        message = _turn(turn, where)
        messages.append(message)
        flags.append(fields.trained(message.role, fields.flag(turn, "weight", where), where))
    tools = fields.tools(record, "tools")
    messages, flags = fields.joined(messages, flags)
    if "rejected" in record:
        messages.append(_answer(record.get("chosen"), "chosen"))
        rejected = _answer(record["rejected"], "rejected")
        return [Example(tuple(messages), tools, last_only(messages), rejected)]
    return [Example(tuple(messages), tools, tuple(flags))]


def _turn(turn: Json, where: str) -> Message:
    if unknown := [key for key in turn if key not in _KEYS]:
        raise InvalidParameterError(
            f"{where} has the unknown key {unknown[0]!r}; allowed are {', '.join(sorted(_KEYS))}."
        )
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise InvalidParameterError(
            f"{where}: 'from' must be one of {', '.join(_ROLES)}, but it is {speaker!r:.40}."
        )
    value = fields.optional_text(turn, "value")
    if speaker != "function_call":
        return Message(_ROLES[speaker], value)
    calls = fields.from_json(value, f"{where} (function_call)")
    calls = calls if isinstance(calls, list) else [calls]
    return Message("assistant", tool_calls=tuple(_call(call, where) for call in calls))


def _call(call: object, where: str) -> ToolCall:
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(name, str) or not name:
        raise InvalidParameterError(
            f'{where}: a function_call must be {{"name": ..., "arguments": {{...}}}} in JSON, but '
            f"it is {fields.shown(call)}."
        )
    arguments = call.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name, arguments)


def _answer(value: object, key: str) -> Message:
    """Chosen or rejected: a turn, or its text alone."""
    if not isinstance(value, dict) or "from" not in value:
        return fields.one_answer(value, key)
    message = _turn(value, key)
    if message.role != "assistant":
        raise InvalidParameterError(f"{key!r} must be the assistant's (gpt), not {message.role}'s.")
    return message


def tools_text(example: Example) -> str:
    return json.dumps([tool.given for tool in example.tools], ensure_ascii=False)


def _write(example: Example) -> dict[str, Any]:
    limits.check_plain(example, NAME)
    limits.check_trained(example, NAME, last=False)
    messages = list(example.messages)
    record: dict[str, Any] = {}
    system = messages.pop(0).content if messages[0].role == "system" else ""
    turns = [_written(message) for message in messages]
    for place, message in enumerate(messages):
        # Whoever reads this form takes every second turn for the assistant's.
        if (message.role == "assistant") != (place % 2 == 1) or message.role == "system":
            raise limits.refuse(
                NAME, "a conversation in which the assistant does not take every second turn"
            )
    if example.rejected is not None:
        record["chosen"], record["rejected"] = turns.pop(), _written(example.rejected)
    record = {"conversations": turns, **record}
    if system:
        record["system"] = system
    if example.tools:
        record["tools"] = tools_text(example)
    return record


def _written(message: Message) -> dict[str, str]:
    if not message.tool_calls:
        names: dict[str, str] = {"user": "human", "assistant": "gpt", "tool": "observation"}
        return {"from": names.get(message.role, message.role), "value": message.content}
    if message.content:
        raise limits.refuse(NAME, "text beside a tool call")
    calls = [{"name": c.name, "arguments": c.parsed()} for c in message.tool_calls]
    value = calls[0] if len(calls) == 1 else calls
    return {"from": "function_call", "value": json.dumps(value, ensure_ascii=False)}


FORM = Form(
    name=NAME,
    keys=frozenset({"conversations", "system", "tools", "chosen", "rejected"}),
    needs="conversations of from and value",
    matches=_matches,
    read=_read,
    write=_write,
)
