"""Anthropic's turns of blocks as OpenAI's messages, which is what chat templates take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Literal, NoReturn

from glimmer.server.bodies import Body, Items, JsonObject
from glimmer.server.errors import ApiError

_BETWEEN = "\n\n"
"""Blocks are paragraphs: without it the last word of one would join the first of the next."""
_NO_TEXT = {"image", "document", "search_result", "container_upload"}
_Placed = tuple[str, JsonObject]
"""A block and where in the body it is."""


class MessageParam(Body):
    role: Literal["user", "assistant", "system"]
    content: str | Items[JsonObject]


def system_text(system: str | Sequence[JsonObject] | None) -> str:
    """Raises ApiError."""
    if system is None or isinstance(system, str):
        return system or ""
    return _texts("system", system)


def to_messages(messages: Sequence[MessageParam]) -> list[JsonObject]:
    """In OpenAI's shape; neighbours of one role become one, as the original does.

    Raises:
        ApiError: a block that these models do not read, or an answer that is to be continued.
    """
    if messages[-1].role == "assistant":
        raise ApiError(
            "unsupported",
            "The last message is the assistant's, but an answer cannot be continued here: end "
            "with a message of the user's. output_config.format holds answers to a form.",
            param=f"messages.{len(messages) - 1}",
        )
    found: list[JsonObject] = []
    placed = [(m.role, block) for i, m in enumerate(messages) for block in _blocks(i, m)]
    for role, group in groupby(placed, key=itemgetter(0)):
        blocks = [block for _, block in group]
        if role == "assistant":
            found.append(_assistant(blocks))
        elif role == "user":
            found += _user(blocks)
        else:
            text = _BETWEEN.join(_text(where, block, "text") for where, block in blocks)
            found.append({"role": "system", "content": text})
    return found


def _blocks(index: int, message: MessageParam) -> Iterator[_Placed]:
    where = f"messages.{index}.content"
    if isinstance(message.content, str):
        yield where, {"type": "text", "text": message.content}
        return
    if not message.content and message.role != "assistant":
        raise ApiError("invalid", f"{where} has no block.", param=where)
    for i, block in enumerate(message.content):
        yield f"{where}.{i}", block


def _user(blocks: Sequence[_Placed]) -> Iterator[JsonObject]:
    """Results of tools are messages of their own."""
    is_result = [block.get("type") == "tool_result" for _, block in blocks]
    for result, group in groupby(zip(is_result, blocks, strict=True), key=itemgetter(0)):
        parts = [part for _, part in group]
        if result:
            yield from (_result(where, block) for where, block in parts)
        else:
            texts = [_text(where, block, "text and tool_result") for where, block in parts]
            yield {"role": "user", "content": _BETWEEN.join(texts)}


def _result(where: str, block: JsonObject) -> JsonObject:
    content = block.get("content")
    if content is not None and not isinstance(content, (str, list)):
        _refuse(where, "content must be text or blocks of it")
    text = _texts(f"{where}.content", content) if isinstance(content, list) else content or ""
    # The models know no sign for it but words.
    if block.get("is_error") is True:
        text = f"Error: {text}"
    call_id = _named(where, block, "tool_use_id")
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def _assistant(blocks: Sequence[_Placed]) -> JsonObject:
    texts, thoughts, calls = [], [], []
    for where, block in blocks:
        match block.get("type"):
            case "thinking":
                thoughts.append(_named(where, block, "thinking", may_be_empty=True))
            case "redacted_thinking":
                pass  # only Anthropic can read it
            case "tool_use":
                if not isinstance(block.get("input"), dict):
                    _refuse(where, "input must be an object")
                function = {"name": _named(where, block, "name"), "arguments": block["input"]}
                call_id = _named(where, block, "id")
                calls.append({"id": call_id, "type": "function", "function": function})
            case _:
                texts.append(_text(where, block, "text, thinking and tool_use"))
    told: JsonObject = {"role": "assistant", "content": _BETWEEN.join(t for t in texts if t)}
    if thoughts:
        told["reasoning_content"] = _BETWEEN.join(thoughts)
    if calls:
        told["tool_calls"] = calls
    return told


def _texts(where: str, blocks: Sequence[object]) -> str:
    texts = []
    for i, block in enumerate(blocks):
        if not isinstance(block, dict):
            _refuse(f"{where}.{i}", "a block must be an object")
        texts.append(_text(f"{where}.{i}", block, "text"))
    return _BETWEEN.join(texts)


def _text(where: str, block: JsonObject, allowed: str) -> str:
    kind = block.get("type")
    if isinstance(kind, str) and kind in _NO_TEXT:
        message = f"{where}: these models read text only, but there is a block of type {kind}."
        raise ApiError("unsupported", message, param=where)
    if kind != "text":
        _refuse(where, f"blocks here are {allowed}, but there is one of type {kind!r:.40}")
    return _named(where, block, "text", may_be_empty=True)


def _named(where: str, block: JsonObject, key: str, *, may_be_empty: bool = False) -> str:
    value = block.get(key)
    if not isinstance(value, str) or not (value or may_be_empty):
        _refuse(where, f"{key} must be text")
    return value


def _refuse(where: str, what: str) -> NoReturn:
    raise ApiError("invalid", f"{where}: {what}.", param=where)
