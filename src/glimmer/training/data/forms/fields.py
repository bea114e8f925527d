"""Values of a record, checked: each reader says what was found and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glimmer.chat import Message, ToolSpec, to_messages, to_tools
from glimmer.errors import InvalidParameterError

# What these keys hold changes what a record means; none of it is trained here.
_UNREAD = {
    "images": "these models read text only",
    "image": "these models read text only",
    "videos": "these models read text only",
    "audios": "these models read text only",
    "kto_tag": "KTO is not trained here; make preferences (chosen and rejected) of such records",
}


def refuse_unread(record: Mapping[str, Any]) -> None:
    """Raise InvalidParameterError if a record holds more than a text conversation."""
    for key, why in _UNREAD.items():
        value = record.get(key)
        if value not in (None, "", [], ()):
            raise InvalidParameterError(f"it has the key {key!r}: {why}.")


def text(record: Mapping[str, Any], key: str) -> str:
    """Text that must be there and not be empty."""
    if not (found := optional_text(record, key)):
        raise InvalidParameterError(f"{key!r} is {'empty' if key in record else 'missing'}.")
    return found


def optional_text(record: Mapping[str, Any], key: str) -> str:
    """Text; none where the key is missing or null."""
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidParameterError(f"{key!r} must be text, but it is {shown(value)}.")
    return value


def objects(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A list of objects, at least one."""
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise InvalidParameterError(
            f"{key!r} must be a list of at least one message, but it is {shown(value)}."
        )
    for place, item in enumerate(value):
        if not isinstance(item, dict):
            raise InvalidParameterError(
                f"{key}[{place}] must be an object, but it is {shown(item)}."
            )
    return value


def history(record: Mapping[str, Any], key: str) -> list[Message]:
    """Earlier rounds: a list of pairs, what the user said and what the assistant answered."""
    rounds = record.get(key)
    if rounds in (None, "", []):
        return []
    if not isinstance(rounds, list):
        raise InvalidParameterError(
            f"{key!r} must be a list of pairs [question, answer], but it is {shown(rounds)}."
        )
    messages = []
    for place, pair in enumerate(rounds):
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(side, str) and side for side in pair)
        ):
            raise InvalidParameterError(
                f"{key}[{place}] must be a pair of texts [question, answer], but it is "
                f"{shown(pair)}."
            )
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages


def system(record: Mapping[str, Any]) -> list[Message]:
    """The system's message of the key "system"; none where it is missing or empty."""
    content = optional_text(record, "system")
    return [Message("system", content)] if content else []


def with_system(
    record: Mapping[str, Any], messages: Sequence[Message], flags: Sequence[bool]
) -> tuple[list[Message], list[bool]]:
    """Messages behind the record's own "system", which others (ms-swift, LLaMA-Factory) put beside
    them."""
    before = system(record)
    if before and messages and messages[0].role == "system":
        raise InvalidParameterError(
            "it has the key 'system', and its first message is the system's too: leave one out."
        )
    return [*before, *messages], [*[False] * len(before), *flags]


def tools(record: Mapping[str, Any], *keys: str) -> tuple[ToolSpec, ...]:
    """Tools of the first of ``keys`` that has any: a list, or the text of a JSON list."""
    for key in keys:
        value = record.get(key)
        if isinstance(value, str) and value.strip():
            value = from_json(value, key)
        if value in (None, "", []):
            continue
        if not isinstance(value, list):
            raise InvalidParameterError(
                f"{key!r} must be a list of tools, or the text of such a list in JSON, but it is "
                f"{shown(value)}."
            )
        return to_tools(value)
    return ()


def from_json(value: str, what: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidParameterError(
            f"{what!r} must be JSON, but it is {value!r:.60} ({error})."
        ) from error


def one_answer(value: object, key: str) -> Message:
    """An answer of the assistant: text, a message, or a list of that one message."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return Message("assistant", value)
    if not isinstance(value, dict):
        raise InvalidParameterError(
            f"{key!r} must be text or one message of the assistant, but it is {shown(value)}."
        )
    (message,) = to_messages([value])
    if message.role != "assistant":
        raise InvalidParameterError(
            f"{key!r} must be the assistant's, but its role is {message.role}."
        )
    return message


def flag(item: Mapping[str, Any], key: str, where: str) -> bool | None:
    """A loss (true, false) or a weight (1, 0); None where the key is missing or null."""
    value = item.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise InvalidParameterError(
        f"{where}: {key!r} must be true or false (1 or 0), but it is {shown(value)}."
    )


def trained(role: str, wanted: bool | None, where: str) -> bool:
    """Whether the loss counts a message, of which the record says ``wanted``."""
    if role == "assistant":
        return wanted is not False
    if wanted:
        raise InvalidParameterError(
            f"{where} ({role}) asks for a loss, but only what the assistant says is trained."
        )
    return False


def joined(messages: Sequence[Message], flags: Sequence[bool]) -> tuple[list[Message], list[bool]]:
    """A text and the call behind it, which some forms give as two messages, as one; results get the
    name of the tool that was called."""
    found: list[Message] = []
    kept: list[bool] = []
    for message, counts in zip(messages, flags, strict=True):
        last = found[-1] if found else None
        if (
            last is not None
            and last.role == message.role == "assistant"
            and kept[-1] == counts
            and message.tool_calls
            and not (message.content or message.metadata or message.reasoning)
            and not (last.tool_calls or last.metadata)
        ):
            found[-1] = replace(last, tool_calls=message.tool_calls)
        else:
            found.append(message)
            kept.append(counts)
    return named(found), kept


def named(messages: Sequence[Message]) -> list[Message]:
    """Tools' results with the name of the tool that was called: by the call's id, else in turn."""
    found: list[Message] = []
    waiting: list[str] = []
    names: dict[str, str] = {}
    for message in messages:
        if message.role != "tool":
            waiting = [call.name for call in message.tool_calls]
            names.update((call.id, call.name) for call in message.tool_calls if call.id)
        else:
            in_turn = waiting.pop(0) if waiting else None
            name = names.get(message.tool_call_id or "", in_turn)
            message = message if message.name is not None else replace(message, name=name)
        found.append(message)
    return found


def shown(value: object) -> str:
    """A value of a record in an error."""
    if value is None:
        return "missing"
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(repr, value)) or 'no keys'}"[:80]
    return f"{value!r:.60}"
