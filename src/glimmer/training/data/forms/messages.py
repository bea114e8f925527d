"""messages of role and content: the JSONL of the hosted fine-tuning of BigModel and OpenAI.

All answers are trained, but those of weight 0. With "rejected" it is a preference: the better
answer is "chosen", or the last message where that key is missing. This form can express all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glimmer.chat import Message, ToolSpec, to_messages
from glimmer.errors import InvalidParameterError
from glimmer.training.data.example import Example, last_only
from glimmer.training.data.forms import fields
from glimmer.training.data.forms.form import Columns, Form, Json

NAME = "messages"
_FLAGS = ("weight", "loss")


def _matches(record: Json, _columns: Columns) -> bool:
    return "messages" in record


def _read(record: Json, _columns: Columns) -> list[Example]:
    turns = fields.objects(record, "messages")
    messages = to_messages([_plain(turn) for turn in turns])
    flags = []
    for place, (turn, message) in enumerate(zip(turns, messages, strict=True)):
        where = f"messages[{place}]"
        wanted = [fields.flag(turn, key, where) for key in _FLAGS]
        flags.append(
            fields.trained(message.role, next((w for w in wanted if w is not None), None), where)
        )
    messages, flags = fields.with_system(record, messages, flags)
    tools = fields.tools(record, "tools", "functions")
    if "rejected" in record:
        if record.get("chosen") is not None:
            messages.append(fields.one_answer(_plain_answer(record["chosen"]), "chosen"))
        rejected = fields.one_answer(_plain_answer(record["rejected"]), "rejected")
        return [Example(tuple(messages), tools, last_only(messages), rejected)]
    return [Example(tuple(messages), tools, tuple(flags))]


def _plain(turn: Json) -> dict[str, Any]:
    """A message without what tells of its loss; OpenAI's older way of a call in today's."""
    message = {key: value for key, value in turn.items() if key not in _FLAGS}
    if unread := [key for key in ("refusal", "audio") if message.get(key)]:
        raise InvalidParameterError(f"a message has the key {unread[0]!r}, which is not trained.")
    call = message.pop("function_call", None)
    if call is not None and not message.get("tool_calls"):
        message["tool_calls"] = [{"function": call}]
    return message


def _plain_answer(value: object) -> object:
    if isinstance(value, list):
        return [_plain_answer(item) for item in value]
    return _plain(value) if isinstance(value, dict) else value


def _write(example: Example) -> dict[str, Any]:
    numbers: dict[str, str] = {}
    waiting: list[str] = []
    turns = []
    for message, trained in zip(example.messages, example.trained, strict=True):
        turn = _written(message, numbers, waiting)
        if message.role == "assistant" and not trained and example.rejected is None:
            turn["weight"] = 0
        turns.append(turn)
    record: dict[str, Any] = {"messages": turns}
    if example.rejected is not None:
        record["chosen"] = turns.pop()
        record["rejected"] = _written(example.rejected, numbers, [])
    if example.tools:
        record["tools"] = [_written_tool(tool) for tool in example.tools]
    return record


def _written_tool(tool: ToolSpec) -> Mapping[str, Any]:
    """As the hosted side asks for it: a function as the "function" of a tool."""
    if tool.function is None or "function" in tool.given:
        return tool.given
    return {"type": "function", "function": tool.function}


def _written(message: Message, numbers: dict[str, str], waiting: list[str]) -> dict[str, Any]:
    """``waiting`` holds the ids of calls that have no result yet. A call without an id gets one,
    and so does its result: the hosted side asks for them."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        calls = []
        for call in message.tool_calls:
            number = call.id or f"call_{len(numbers)}"
            numbers[number] = call.name
            waiting.append(number)
            function = {"name": call.name, "arguments": call.arguments}
            calls.append({"id": number, "type": "function", "function": function})
        turn["tool_calls"] = calls
    if message.role == "tool":
        answered = message.tool_call_id or (waiting[0] if waiting else None)
        if answered in waiting:
            waiting.remove(answered)
        if answered is not None:
            turn["tool_call_id"] = answered
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.metadata:
        turn["metadata"] = message.metadata
    if message.tools:
        turn["tools"] = [tool.given for tool in message.tools]
    return turn


FORM = Form(
    name=NAME,
    keys=frozenset({"messages", "system", "tools", "functions", "chosen", "rejected"}),
    needs="messages",
    matches=_matches,
    read=_read,
    write=_write,
)
