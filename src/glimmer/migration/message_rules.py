"""Differences in messages, tools and the length of a conversation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from glimmer.migration.call import Call, Hit
from glimmer.migration.detectors import more_than, number, show
from glimmer.migration.hosted import find_model
from glimmer.migration.rule import Rule
from glimmer.migration.target import Target

_ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_KEYS = {"role", "content", "tool_calls", "tool_call_id", "reasoning_content", "audio"}
_MAX_DEPTH = 20


def _messages(call: Call) -> list[dict[str, Any]]:
    messages = call.parameters.get("messages")
    return [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []


def _roles(call: Call) -> list[str] | None:
    """Every message's role; None where one is not known."""
    messages = call.parameters.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    roles = [m.get("role") if isinstance(m, dict) else None for m in messages]
    return (
        [r for r in roles if isinstance(r, str)] if all(isinstance(r, str) for r in roles) else None
    )


def _parts(call: Call) -> Iterator[dict[str, Any]]:
    for message in _messages(call):
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def _media(call: Call) -> list[str]:
    """The kinds of content that are no text, each once."""
    text = ("text", "input_text", "output_text", "thinking", "tool_use", "tool_result")
    kinds = (part.get("type") for part in _parts(call))
    return list(dict.fromkeys(k for k in kinds if isinstance(k, str) and k not in text))


def _unknown_role(call: Call, _: Target) -> Iterator[Hit]:
    for role in dict.fromkeys(message.get("role") for message in _messages(call)
                              if isinstance(message.get("role"), str)):  # fmt: skip
        if role not in _ROLES:
            yield Hit("messages", f"the role {show(role)}")


def _nobody_asks(call: Call, _: Target) -> Iterator[Hit]:
    roles = _roles(call)
    if roles is not None and set(roles) <= {"system", "assistant"}:
        yield Hit("messages", f"only messages of {' and '.join(sorted(set(roles)))}")


def _late_system(call: Call, _: Target) -> Iterator[Hit]:
    roles = _roles(call)
    if roles is not None and "system" in roles[1:]:
        yield Hit("messages", "a system message that is not the first")


def _prefill(call: Call, _: Target) -> Iterator[Hit]:
    roles = _roles(call)
    if roles is not None and roles[-1] == "assistant" and "user" in roles:
        yield Hit("messages", "the last message is the assistant's")


def _unlisted_keys(call: Call, _: Target) -> Iterator[Hit]:
    keys = {str(key) for message in _messages(call) for key in message} - _MESSAGE_KEYS
    for key in sorted(keys)[:10]:
        yield Hit("messages", f"the key {show(key)} in a message")


def _media_for_local(call: Call, _: Target) -> Iterator[Hit]:
    for kind in _media(call):
        yield Hit("messages", f"content of type {show(kind)}")


def _media_for_hosted(call: Call, target: Target) -> Iterator[Hit]:
    asked = target.model or call.parameters.get("model")
    model = find_model(asked) if isinstance(asked, str) else None
    if model is None or model.kind in ("text", "embedding"):
        for kind in _media(call):
            yield Hit("messages", f"content of type {show(kind)}")


def _text_parts(call: Call, target: Target) -> Iterator[Hit]:
    if any(part.get("type") == "text" for part in _parts(call)) and not _media(call):
        yield Hit("messages", "text in parts")


def _tools(call: Call) -> list[dict[str, Any]]:
    tools = call.parameters.get("tools")
    return [t for t in tools if isinstance(t, dict)] if isinstance(tools, list) else []


def _platform_tools(call: Call, _: Target) -> Iterator[Hit]:
    # A tool of Anthropic's that the client runs has no type; one that its server runs has.
    ours = ("function", "custom")
    for kind in dict.fromkeys(tool.get("type") for tool in _tools(call)
                              if isinstance(tool.get("type"), str)):  # fmt: skip
        if kind not in ours:
            yield Hit("tools", f"a tool of type {show(kind)}")


def _strict(call: Call, _: Target) -> Iterator[Hit]:
    functions = (tool.get("function") for tool in _tools(call))
    if any(isinstance(f, dict) and f.get("strict") is True for f in functions):
        yield Hit("tools", "a function with strict")


def estimated_tokens(value: Any, depth: int = 0) -> float:
    """By the platform's rule of thumb: a token is 1.5 Chinese characters or 3/4 of an English word
    (4 characters). Keys of objects do not count, nor does what code computes."""
    if isinstance(value, str):
        wide = sum(char >= "\u2e80" for char in value)
        return wide / 1.5 + (len(value) - wide) / 4
    if depth < _MAX_DEPTH:
        if isinstance(value, list):
            return sum(estimated_tokens(entry, depth + 1) for entry in value)
        if isinstance(value, dict):
            # An image's data is no text.
            texts = (v for key, v in value.items() if key not in ("image_url", "data", "url"))
            return sum(estimated_tokens(entry, depth + 1) for entry in texts)
    return 0


def _too_long(call: Call, target: Target) -> Iterator[Hit]:
    limits = target.limits(call.parameters.get("model"))
    if limits is None or limits[1] is None:
        return
    prompt = sum(estimated_tokens(call.parameters.get(name)) for name in ("messages", "tools"))
    # An answer may use up what the prompt leaves, so only a given length counts, and that is
    # another rule's where no context could hold it.
    answer = number(call.parameters.get("max_tokens")) or 0
    answer = max(0.0, answer) if answer <= min(limits[2] or math.inf, 1e15) else 0.0
    if prompt + answer > limits[1]:
        # The step keeps a file of many long requests from being a list of as many findings.
        about = max(1, round(prompt / 10_000)) * 10_000
        yield Hit(
            "messages",
            f"about {about} tokens of prompt"
            + (f" and max_tokens of {answer:.0f}" if answer else "")
            + f"; {limits[0]} has a context of {limits[1]}",
        )


MESSAGE_RULES = (
    Rule(
        id="roles",
        to="hosted",
        severity="error",
        detects="roles other than system, user, assistant and tool",
        why="The platform knows system, user, assistant and tool. Here developer, function and "
        "observation are taken too.",
        fix="Write system for developer, tool (with tool_call_id) for function and observation.",
        source="reference",
        detect=_unknown_role,
    ),
    Rule(
        id="nobody-asks",
        to="hosted",
        severity="error",
        detects="messages of system and assistant alone",
        why="The platform refuses a conversation without a message of user or tool.",
        fix="Put what is asked into a message of user.",
        source="reference",
        detect=_nobody_asks,
    ),
    Rule(
        id="late-system",
        to="hosted",
        severity="note",
        detects="a system message that is not the first",
        why="The platform's reference does not say what it makes of it; that it may be ignored is "
        "from memory.",
        fix="Join system messages into one, at the front.",
        source="memory",
        detect=_late_system,
    ),
    Rule(
        id="prefill",
        to="hosted",
        severity="warning",
        detects="a last message of assistant",
        why="The platform's reference does not say that an answer which was begun is continued.",
        fix="End with a message of user or tool, and say in it how the answer should begin.",
        source="reference",
        detect=_prefill,
    ),
    Rule(
        id="message-keys",
        to="hosted",
        severity="note",
        detects="name, metadata, tools and other keys inside messages",
        why="The platform's reference does not list the key. ChatGLM3's metadata and tools in a "
        "system message are its open releases' own.",
        fix="Leave it out; tools go beside messages.",
        source="reference",
        detect=_unlisted_keys,
    ),
    Rule(
        id="text-parts",
        to="hosted",
        severity="note",
        detects="a text model's content as a list of parts",
        why="The platform's reference has a string for text models.",
        fix="Join the parts into one string.",
        source="reference",
        detect=_text_parts,
    ),
    Rule(
        id="media-hosted",
        to="hosted",
        severity="warning",
        detects="images, video, sound or files for a model that is not known to read them",
        why="The platform's text models take text alone.",
        fix="Ask a vision model: glm-4.6v or glm-5v-turbo.",
        source="reference",
        endpoints=("chat", "messages"),
        detect=_media_for_hosted,
    ),
    Rule(
        id="media-local",
        to="local",
        severity="error",
        detects="images, video, sound or files in messages",
        why="Models here read text; such content is refused.",
        fix="Keep these requests on the platform, or send a text that describes the content.",
        source="here",
        endpoints=("chat", "messages"),
        detect=_media_for_local,
    ),
    Rule(
        id="platform-tools",
        to="local",
        severity="error",
        detects="tools of type web_search, retrieval, mcp, code_interpreter, ...",
        why="The platform runs them; this server refuses them.",
        fix='Offer a tool of type "function" and run the search or the code in the program.',
        source="here",
        endpoints=("chat", "messages", "responses"),
        detect=_platform_tools,
    ),
    Rule(
        id="tool-count",
        to="hosted",
        severity="error",
        detects="more than 128 tools",
        why="The platform takes 128 functions.",
        fix="Offer those that may be needed.",
        source="reference",
        detect=more_than("tools", 128),
    ),
    Rule(
        id="strict-tools",
        to="hosted",
        severity="note",
        detects="strict in a function",
        why="The platform's reference does not list it: arguments may differ from the schema.",
        fix="Check the arguments before you use them.",
        source="reference",
        detect=_strict,
    ),
    Rule(
        id="context-length",
        to="both",
        severity="warning",
        detects="an estimated prompt, with max_tokens, beyond the context of the model there",
        why="The other side refuses it. The count is an estimate from characters.",
        fix="Shorten the conversation, lower max_tokens, or take a model of a longer context.",
        source="reference",
        endpoints=("chat", "messages"),
        detect=_too_long,
    ),
)
