"""A conversation as rounds of question and answer, which is all that ChatGLM and ChatGLM2 know.

System messages and tools are emulated: neither generation was trained with them. The system's text
goes before the first question. So do the tools, with the request to answer with one line of JSON to
call one; a call in the history is that line again, and a tool's result is the next question.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from glimmer.chat import Message, ToolSpec
from glimmer.errors import InvalidParameterError

_TOOLS = """你可以调用以下工具：

{tools}

如果需要调用工具，请只输出一行 JSON，不要输出其他内容，格式为：
{{"name": "工具名", "arguments": {{"参数名": "参数值"}}}}
如果不需要调用工具，请直接回答。"""
_RESULT = "工具{name}返回的结果：\n{content}"


@dataclass(frozen=True, slots=True)
class Rounds:
    history: list[tuple[str, str]]
    query: str | None
    """The question that is to be answered; None after an answer."""


def to_rounds(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Rounds:
    """Raises InvalidParameterError if a system message stands between questions and answers."""
    preface = [m.content for m in messages if m.role == "system" and m.content]
    tools = _all_tools(messages, tools)
    if tools:
        preface.append(_TOOLS.format(tools="\n".join(map(_describe, tools))))
    names = {call.id: call.name for m in messages for call in m.tool_calls}
    history: list[tuple[str, str]] = []
    questions: list[str] = []
    for message in messages:
        if message.role == "system":
            if history or questions:
                raise InvalidParameterError(
                    "A system message must come first: this family knows rounds of question and "
                    "answer alone, and puts the system's text before the first question."
                )
        elif message.role == "assistant":
            history.append(("\n".join(questions), answer_text(message)))
            questions = []
        elif message.role == "tool":
            name = message.name or names.get(message.tool_call_id or "", "")
            questions.append(
                _RESULT.format(name=f" {name} " if name else "", content=message.content)
            )
        else:
            questions.append(message.content)
    query = "\n".join(questions) if questions else None
    if preface:
        first, *_ = [q for q, _ in history] or [query or ""]
        joined = "\n\n".join([*preface, first])
        if history:
            history[0] = (joined, history[0][1])
        else:
            query = joined
    return Rounds(history, query)


def answer_text(message: Message) -> str:
    """An answer with its emulated calls, each a line of JSON."""
    lines = [message.content] if message.content else []
    lines += [
        json.dumps({"name": c.name, "arguments": c.parsed()}, ensure_ascii=False)
        for c in message.tool_calls
    ]
    return "\n".join(lines)


def emulation_notes(
    family: str, messages: Sequence[Message], tools: Sequence[ToolSpec]
) -> tuple[str, ...]:
    notes = []
    if any(m.role == "system" and m.content for m in messages):
        notes.append(
            f"{family} was not trained with system messages: the text goes before the first "
            "question, and may be followed loosely."
        )
    if _all_tools(messages, tools):
        notes.append(
            f"{family} was not trained to call tools: they are described in the first question, "
            "and calls are read from a line of JSON."
        )
    return tuple(notes)


def _all_tools(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[ToolSpec]:
    """Those that come beside the messages, and those of a system message."""
    return [*tools, *(tool for message in messages for tool in message.tools)]


def _describe(tool: ToolSpec) -> str:
    if tool.function is None:
        raise InvalidParameterError(
            f"The tool {tool.name!r} is built into GLM-4 alone; this family takes functions."
        )
    return json.dumps(tool.function, ensure_ascii=False)
