"""conversations of role and content, as in the official finetune demos of ChatGLM3 and GLM-4.

A message of role "tool" with "parameters" is a call and its result ("observation") in one. "loss"
tells of each message whether it is trained; without it, all answers and calls are. A call may also
be an assistant's message with the tool's name as "metadata", as ChatGLM3 and GLM-4 write it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from glimmer.chat import Message, ToolCall, to_messages
from glimmer.errors import InvalidParameterError
from glimmer.training.data.example import Example
from glimmer.training.data.forms import fields, limits
from glimmer.training.data.forms.form import Columns, Form, Json

NAME = "conversations"
_ROLES = ("system", "user", "assistant", "observation", "tool")
_CALL_KEYS = frozenset({"role", "name", "parameters", "observation", "loss", "content"})


def _matches(record: Json, _columns: Columns) -> bool:
    turns = record.get("conversations")
    return isinstance(turns, list) and not any(isinstance(t, dict) and "from" in t for t in turns)


def _read(record: Json, _columns: Columns) -> list[Example]:
    messages: list[Message] = []
    flags: list[bool] = []
    for place, turn in enumerate(fields.objects(record, "conversations")):
        where = f"conversations[{place}]"
        loss = fields.flag(turn, "loss", where)
        for message in _turn(turn, where):
            wanted = loss if message.role == "assistant" or "parameters" not in turn else None
            messages.append(message)
            flags.append(fields.trained(message.role, wanted, where))
    messages, flags = fields.with_system(record, messages, flags)
    messages, flags = fields.joined(messages, flags)
    return [Example(tuple(messages), fields.tools(record, "tools"), tuple(flags))]


def _turn(turn: Json, where: str) -> Iterator[Message]:
    role = turn.get("role")
    if role not in _ROLES:
        raise InvalidParameterError(
            f"{where}: 'role' must be one of {', '.join(_ROLES)}, but it is {role!r:.40}."
        )
    if role == "tool" and ("parameters" in turn or "observation" in turn):
        yield from _call(turn, where)
        return
    given = {key: value for key, value in turn.items() if key != "loss"}
    try:
        yield from to_messages([given])
    except InvalidParameterError as error:
        raise InvalidParameterError(str(error).replace("Message 0", where)) from error


def _call(turn: Json, where: str) -> Iterator[Message]:
    if unknown := [key for key in turn if key not in _CALL_KEYS]:
        raise InvalidParameterError(
            f"{where} has the unknown key {unknown[0]!r}; allowed are "
            f"{', '.join(sorted(_CALL_KEYS))}."
        )
    name, parameters = fields.text(turn, "name"), turn.get("parameters")
    if not isinstance(parameters, Mapping):
        raise InvalidParameterError(
            f"{where}: 'parameters' must be an object, but it is {fields.shown(parameters)}."
        )
    if "observation" not in turn:
        raise InvalidParameterError(f"{where}: a call needs its result, the 'observation'.")
    arguments = json.dumps(parameters, ensure_ascii=False)
    yield Message(
        "assistant", fields.optional_text(turn, "content"), tool_calls=(ToolCall(name, arguments),)
    )
    observation = turn["observation"]
    if not isinstance(observation, str):
        observation = json.dumps(observation, ensure_ascii=False)
    yield Message("tool", observation, name=name)


def _write(example: Example) -> dict[str, Any]:
    limits.check_plain(example, NAME, metadata=True)
    if example.rejected is not None:
        raise limits.refuse(NAME, "preferences")
    turns: list[dict[str, Any]] = []
    messages = list(zip(example.messages, example.trained, strict=True))
    while messages:
        message, trained = messages.pop(0)
        loss = {} if trained or message.role != "assistant" else {"loss": False}
        if message.content or not message.tool_calls:
            role = "observation" if message.role == "tool" else message.role
            metadata = {"metadata": message.metadata} if message.metadata else {}
            turns.append({"role": role, **metadata, "content": message.content, **loss})
        if not message.tool_calls:
            continue
        if len(message.tool_calls) > 1:
            raise limits.refuse(NAME, "several calls in one message")
        if not messages or messages[0][0].role != "tool":
            raise limits.refuse(NAME, "a call without its result")
        (call,), (result, _) = message.tool_calls, messages.pop(0)
        turns.append(
            {
                "role": "tool",
                "name": call.name,
                "parameters": call.parsed(),
                "observation": result.content,
                **loss,
            }
        )
    tools = {"tools": [tool.given for tool in example.tools]} if example.tools else {}
    return {**tools, "conversations": turns}


FORM = Form(
    name=NAME,
    keys=frozenset({"conversations", "system", "tools"}),
    needs="conversations of role and content",
    matches=_matches,
    read=_read,
    write=_write,
)
