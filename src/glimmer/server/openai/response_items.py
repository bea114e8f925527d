"""The items of the Responses API: those of a request as messages, those of an answer from one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from glimmer.outputs import RequestOutput
from glimmer.server.bodies import JsonObject
from glimmer.server.errors import ApiError

_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ROLES = ("user", "assistant", "system", "developer")


def to_messages(items: Sequence[JsonObject]) -> list[JsonObject]:
    """In the shape of chat completions. A thought, a text and calls that follow each other are one
    turn of the assistant's.

    Raises:
        ApiError: an item that these models do not read, or that would have to be kept here.
    """
    found: list[JsonObject] = []
    turn: JsonObject | None = None
    """The assistant's last message, while it can take more."""
    for i, item in enumerate(items):
        where = f"input[{i}]"
        part = _part(where, item)
        if part is None:
            turn = None
            found.append(_message(where, item))
        elif part:
            if turn is None or not _continues(turn, part):
                turn = {"role": "assistant"}
                found.append(turn)
            if "tool_calls" in part:
                part["tool_calls"] = [*turn.get("tool_calls", ()), *part["tool_calls"]]
            turn.update(part)
    return found


def output_items(
    output: RequestOutput, name: str, status: str, logprobs: Sequence[JsonObject] = ()
) -> list[JsonObject]:
    """Of a whole answer. ``name`` makes their ids; ``status`` is that of the last one."""
    items: list[JsonObject] = []
    if output.reasoning:
        items.append(reasoning_item(f"rs_{name}_0", output.reasoning))
    if output.text or not (output.tool_calls or items):
        items.append(message_item(f"msg_{name}_{len(items)}", output.text, logprobs))
    for call in output.tool_calls:
        item_id = f"fc_{name}_{len(items)}"
        items.append(call_item(item_id, call.id, call.name, call.arguments))
    return [{**item, "status": "completed"} for item in items[:-1]] + [
        {**items[-1], "status": status}
    ]


def reasoning_item(item_id: str, text: str | None) -> JsonObject:
    """With the thought itself: there is no summary of it."""
    content = [] if text is None else [reasoning_part(text)]
    return {"type": "reasoning", "id": item_id, "summary": [], "content": content}


def message_item(item_id: str, text: str | None, logprobs: Sequence[JsonObject] = ()) -> JsonObject:
    content = [] if text is None else [text_part(text, logprobs)]
    return {"type": "message", "id": item_id, "role": "assistant", "content": content}


def call_item(item_id: str, call_id: str, name: str, arguments: str) -> JsonObject:
    call = {"call_id": call_id, "name": name, "arguments": arguments}
    return {"type": "function_call", "id": item_id, **call}


def reasoning_part(text: str) -> JsonObject:
    return {"type": "reasoning_text", "text": text}


def text_part(text: str, logprobs: Sequence[JsonObject] = ()) -> JsonObject:
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": list(logprobs),
    }


def _part(where: str, item: JsonObject) -> JsonObject | None:
    """What an item adds to a turn of the assistant's; None for an item that is none of its own."""
    kind = item.get("type", "message")
    if kind == "message" and item.get("role") == "assistant":
        return {"content": _text(f"{where}.content", item.get("content"))}
    if kind == "reasoning":
        # What is encrypted, OpenAI alone can read.
        thought = _text(f"{where}.content", item.get("content") or item.get("summary") or [])
        return {"reasoning_content": thought} if thought else {}
    if kind == "function_call":
        if not isinstance(arguments := item.get("arguments", "{}"), str):
            _refuse(where, "arguments must be text")
        function = {"name": _word(where, item, "name"), "arguments": arguments}
        call_id = _word(where, item, "call_id")
        return {"tool_calls": [{"id": call_id, "type": "function", "function": function}]}
    return None


def _continues(turn: JsonObject, part: JsonObject) -> bool:
    """A thought comes before a text and a text before calls, each but the last once."""
    if "tool_calls" in part:
        return True
    return "tool_calls" not in turn and "content" not in turn and turn.keys().isdisjoint(part)


def _message(where: str, item: JsonObject) -> JsonObject:
    """What is not the assistant's."""
    kind = item.get("type", "message")
    if kind == "function_call_output":
        text = _text(f"{where}.output", item.get("output"))
        return {"role": "tool", "tool_call_id": _word(where, item, "call_id"), "content": text}
    if kind == "item_reference":
        raise ApiError(
            "unsupported",
            f"{where} refers to an item, but this server keeps none: send it as it is.",
            param=where,
        )
    if kind != "message":
        _refuse(
            where,
            "an item must be a message, function_call, function_call_output or reasoning, but it "
            f"is of type {kind!r:.40}",
        )
    if (role := item.get("role")) not in _ROLES:
        _refuse(where, f"role must be one of {', '.join(_ROLES)}, but it is {role!r:.40}")
    return {"role": role, "content": _text(f"{where}.content", item.get("content"))}


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        _refuse(where, "it must be text or parts of it")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind == "refusal":
            text = part.get("refusal")
        elif kind not in _TEXTS:
            message = (
                f"{where}[{i}]: these models read text only, but the part is of type {kind!r:.40}."
            )
            raise ApiError("unsupported", message, param=where)
        if not isinstance(text, str):
            _refuse(f"{where}[{i}]", "the part has no text")
        texts.append(text)
    return "".join(texts)


def _word(where: str, item: JsonObject, key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        _refuse(where, f"{key} must be text")
    return value


def _refuse(where: str, what: str) -> NoReturn:
    raise ApiError("invalid", f"{where}: {what}.", param=where)
