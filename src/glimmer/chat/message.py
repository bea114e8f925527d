"""One message of a conversation, in OpenAI's shape. Knows no family and no ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from glimmer.errors import InvalidParameterError

Role = Literal["system", "user", "assistant", "tool"]
# What others call the same roles: OpenAI's newer and older names, and ChatGLM's.
_ALIASES = {"developer": "system", "function": "tool", "observation": "tool"}
_KEYS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "metadata",
     "tools", "refusal", "function_call", "audio", "annotations"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asked for. ``arguments`` is JSON text, as the model wrote it."""

    name: str
    arguments: str
    id: str = ""

    def parsed(self) -> dict[str, Any]:
        """The arguments as an object.

        Raises:
            InvalidParameterError: they are no JSON object.
        """
        try:
            value = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidParameterError(
                f"The arguments of the call of {self.name!r} are not JSON: {error}."
            ) from error
        if not isinstance(value, dict):
            raise InvalidParameterError(
                f"The arguments of the call of {self.name!r} must be a JSON object, but they are "
                f"a {type(value).__name__}."
            )
        return value


@dataclass(frozen=True, slots=True, eq=False)
class ToolSpec:
    """A tool that a model may call."""

    name: str
    function: Mapping[str, Any] | None
    """Name, description and parameters (a JSON schema); None for a tool that is built in."""
    given: Mapping[str, Any]
    """What the caller gave, key for key: some families show it as it is."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """That of the arguments; empty where the tool tells none."""
        schema = (self.function or {}).get("parameters")
        return schema if isinstance(schema, Mapping) else MappingProxyType({})

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Schemas by parameter; empty where the tool tells none."""
        properties = self.schema.get("properties")
        return properties if isinstance(properties, Mapping) else MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None
    """What the model thought before this answer of its own."""
    metadata: str = ""
    """ChatGLM3 and GLM-4: what stands behind the role, the name of the tool that is called."""
    tools: tuple[ToolSpec, ...] = field(default=(), compare=False)
    """ChatGLM3 and GLM-4: tools that a system message offers."""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InvalidParameterError(
                f"A message's role must be one of {', '.join(get_args(Role))}, "
                f"but it is {self.role!r}."
            )
        for what in ("content", "metadata"):
            if not isinstance(value := getattr(self, what), str):
                raise InvalidParameterError(
                    f"A message's {what} must be text, but it is {type(value).__name__}."
                )


def to_messages(messages: Sequence[Message | Mapping[str, object]]) -> list[Message]:
    """Messages from OpenAI-shaped mappings; those that are messages already are kept.

    Raises:
        InvalidParameterError: no message at all, an unknown role or key, content that is not text.
    """
    if not messages:
        raise InvalidParameterError("A chat needs at least one message, but there is none.")
    return [m if isinstance(m, Message) else _from_mapping(i, m) for i, m in enumerate(messages)]


def to_tools(tools: Sequence[Mapping[str, object] | ToolSpec] | None) -> tuple[ToolSpec, ...]:
    """Tools from OpenAI's form, ``{"type": "function", "function": {...}}``, or bare functions.

    Raises:
        InvalidParameterError: a tool without a name, two of one name, or no mapping at all.
    """
    specs = tuple(
        tool if isinstance(tool, ToolSpec) else _tool(i, tool) for i, tool in enumerate(tools or ())
    )
    names = [spec.name for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidParameterError(f"There are two tools called {twice[0]!r}; names must differ.")
    return specs


def _from_mapping(index: int, mapping: Mapping[str, object]) -> Message:
    where = f"Message {index}"
    if not isinstance(mapping, Mapping) or "role" not in mapping:
        raise InvalidParameterError(
            f"{where} must be a mapping with the keys role and content, "
            f"but it is {_keys_of(mapping)}."
        )
    if unknown := [str(key) for key in mapping if key not in _KEYS]:
        raise InvalidParameterError(
            f"{where} has the unknown key {unknown[0]!r}; allowed are {', '.join(sorted(_KEYS))}."
        )
    role = mapping["role"]
    role = _ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in get_args(Role):
        raise InvalidParameterError(
            f"{where}: role must be one of {', '.join(get_args(Role))}, but it is {role!r:.60}."
        )
    content = mapping.get("content")
    calls = _tool_calls(where, mapping.get("tool_calls"))
    if content is None and not calls and role != "assistant":
        raise InvalidParameterError(f"{where} ({role}) has no content.")
    reasoning = mapping.get("reasoning_content")
    return Message(
        role,  # type: ignore[arg-type]  # checked above
        _text(where, content),
        name=_optional_text(where, mapping, "name"),
        tool_calls=calls,
        tool_call_id=_optional_text(where, mapping, "tool_call_id"),
        reasoning=None if reasoning is None else _text(where, reasoning),
        metadata=_optional_text(where, mapping, "metadata") or "",
        tools=to_tools(_sequence(where, "tools", mapping.get("tools"))),
    )


def _text(where: str, content: object) -> str:
    """Text, or OpenAI's list of parts of text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = _sequence(where, "content", content)
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise InvalidParameterError(
                f"{where}: content must be text or parts of type text, but there is a part of type "
                f"{kind!r:.40}. These models read text only."
            )
        texts.append(text)
    return "".join(texts)


def _tool_calls(where: str, given: object) -> tuple[ToolCall, ...]:
    calls = []
    for i, call in enumerate(_sequence(where, "tool_calls", given)):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise InvalidParameterError(f"{where}: tool_calls[{i}] has no function with a name.")
        arguments = function.get("arguments", "{}")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        call_id = call.get("id") if isinstance(call, Mapping) else None
        calls.append(ToolCall(name, arguments, call_id if isinstance(call_id, str) else ""))
    return tuple(calls)


def _tool(index: int, tool: Mapping[str, object]) -> ToolSpec:
    where = f"Tool {index}"
    if not isinstance(tool, Mapping):
        raise InvalidParameterError(f"{where} must be a mapping, but it is {_keys_of(tool)}.")
    kind = tool.get("type", "function")
    function = tool.get("function") if "function" in tool else tool
    if kind != "function":
        if not isinstance(kind, str) or not kind:
            raise InvalidParameterError(f"{where} has the type {kind!r:.40}; it must be text.")
        return ToolSpec(kind, None, tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise InvalidParameterError(
            f'{where} must look like {{"type": "function", "function": {{"name": ...}}}}, but it '
            f"is {_keys_of(tool)}."
        )
    return ToolSpec(name, function, tool)


def _sequence(where: str, what: str, value: object) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidParameterError(
            f"{where}: {what} must be a list, but it is {type(value).__name__}."
        )
    return value


def _optional_text(where: str, mapping: Mapping[str, object], key: str) -> str | None:
    value = mapping.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidParameterError(
            f"{where}: {key} must be text, but it is {type(value).__name__}."
        )
    return value


def _keys_of(value: object) -> str:
    if isinstance(value, Mapping):
        return f"one with {', '.join(map(str, value)) or 'no keys'}"
    return f"a {type(value).__name__}"
