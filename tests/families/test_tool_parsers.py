"""Answers as they are read: the official post-processing, and calls in each family's syntax."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.chat import AnswerParser, ParsedAnswer, ToolSpec, to_tools
from glimmer.families.chatglm.tool_parser import tool_parser as chatglm
from glimmer.families.chatglm2.tool_parser import tool_parser as chatglm2
from glimmer.families.chatglm3.tool_parser import literal_arguments
from glimmer.families.chatglm3.tool_parser import tool_parser as chatglm3
from glimmer.families.glm4.tool_parser import tool_parser as glm4
from glimmer.families.glm4_0414.tool_parser import tool_parser as glm4_0414
from glimmer.families.glm45.tool_parser import tool_parser as glm45
from tests.support import golden

Make = Callable[[Sequence[ToolSpec]], AnswerParser]


def z1(tools: Sequence[ToolSpec]) -> AnswerParser:
    return glm4_0414(tools, thinks=True)


PARSERS: dict[str, Make] = {
    "chatglm-6b": chatglm,
    "chatglm2-6b": chatglm2,
    "chatglm3-6b": chatglm3,
    "glm-4-9b-chat": glm4,
    "glm-4-0414": glm4_0414,
    "glm-z1-0414": z1,
    "glm-4.5": glm45,
}
ASSISTANT = "<|assistant|>"
TOOLS = to_tools(
    [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                },
            },
        },
        {"type": "function", "function": {"name": "weather_map"}},
    ]
)


def parse(make: Make, answer: str, tools: Sequence[ToolSpec] = (), cuts: Sequence[int] = ()) -> Any:
    """What an answer is read as, cut into pieces at ``cuts``; ``ASSISTANT`` is a control token."""
    parser, parsed = make(tools), ParsedAnswer()
    start = 0
    for place, part in enumerate(answer.split(ASSISTANT)):
        if place:
            parsed.add(parser.control(ASSISTANT))
        at = sorted({c - start for c in cuts if start < c < start + len(part)})
        for begin, end in zip([0, *at], [*at, len(part)], strict=True):
            parsed.add(parser.push(part[begin:end]))
        start += len(part) + len(ASSISTANT)
    parsed.add(parser.finish())
    calls = [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls]
    return parsed.text, parsed.reasoning, calls


def cases() -> list[Any]:
    found = []
    for name in PARSERS:
        path = golden.FOLDER / "prompts" / f"{name}.json"
        data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found += [
            pytest.param(name, case, id=f"{name}-{i}")
            for i, case in enumerate(data.get("process_response", ()))
        ]
    return found


@pytest.mark.parametrize(("name", "case"), cases())
def test_official_post_processing(name: str, case: dict[str, Any]) -> None:
    history = case.get("history", [])
    tools = to_tools(history[0].get("tools") if history else None)
    text, _, calls = parse(PARSERS[name], case["raw"], tools)
    expected = case.get("content", case.get("out"))
    if isinstance(expected, str):
        assert (text, calls) == (expected, [])
    elif "parameters" in expected:
        assert (text, calls) == ("", [(expected["name"], expected["parameters"])])
    else:  # code for a tool of ChatGLM3's or GLM-4's own
        (found,) = calls
        content = expected["content"]
        code = "\n".join(content.strip().split("\n")[1:-1])
        arguments = {"code": code} if expected["name"] == "interpreter" else {"content": content}
        assert found == (expected["name"], arguments)


ANSWERS = {
    "chatglm-6b": '{"name": "weather", "arguments": {"city": "北京", "days": 2}}',
    "chatglm2-6b": ' \n{"name": "weather", "arguments": {"city": "北京", "days": 2}}\n',
    "chatglm3-6b": "weather\n ```python\ntool_call(city='北京', days=2)\n```",
    "glm-4-9b-chat": 'weather\n{"city": "北京", "days": 2}',
    "glm-4-0414": 'weather\n{"city": "北京", "days": 2}\n',
    "glm-z1-0414": '\nLet me see.\n</think>weather\n{"city": "北京", "days": 2}',
    "glm-4.5": "\n<think>Let me see.</think>\n<tool_call>weather\n<arg_key>city</arg_key>\n"
    "<arg_value>北京</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
}


@pytest.mark.parametrize("name", ANSWERS)
@given(data=st.data())
def test_a_call_is_read_however_it_arrives(name: str, data: st.DataObject) -> None:
    answer = ANSWERS[name]
    cuts = data.draw(st.lists(st.integers(1, len(answer) - 1)))
    text, reasoning, calls = parse(PARSERS[name], answer, TOOLS, cuts)
    assert text == ""
    assert calls == [("weather", {"city": "北京", "days": 2})]
    assert reasoning == ("Let me see." if name in ("glm-z1-0414", "glm-4.5") else None)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_any_answer_is_read_the_same_in_pieces(name: str, data: st.DataObject) -> None:
    words = st.sampled_from(
        ["weather", "weather_map", "\n", " ", "{", "}", '"', "你好", ",", "!", "[[训练时间]]", "[[",
         "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg",
         "<arg_value>", "</arg_value>", "a", "tool_call(", ")", "```", "'", "=", ASSISTANT]
    )  # fmt: skip
    answer = "".join(data.draw(st.lists(words | st.text(max_size=3), max_size=25)))
    cuts = data.draw(st.lists(st.integers(0, max(len(answer), 1))))
    try:
        whole = parse(PARSERS[name], answer, TOOLS)
    except json.JSONDecodeError:
        return  # GLM-4 hands on what the model wrote for JSON, right or wrong
    assert parse(PARSERS[name], answer, TOOLS, cuts) == whole


@pytest.mark.parametrize("name", ["glm-4-9b-chat", "glm-4-0414", "chatglm3-6b"])
def test_a_first_line_is_a_call_only_of_a_tool_that_was_offered(name: str) -> None:
    answer = "weather\nis fine"
    assert parse(PARSERS[name], answer)[0] == answer
    assert parse(PARSERS[name], "\n weather\nis fine", TOOLS)[0] == "weather\nis fine"
    assert parse(PARSERS[name], "weathercock\n{}", TOOLS)[2] == []


@pytest.mark.parametrize(
    "code",
    [
        "tool_call(x=__import__('os').system('touch /tmp/owned'))",
        "tool_call(x=open('/etc/passwd').read())",
        "__import__('os')",
        "tool_call(*[1])",
        "tool_call(**{'a': 1})",
        "tool_call('positional')",
        "other(a=1)",
        "tool_call(a=b)",
        "tool_call(a=1); tool_call(b=2)",
        "tool_call(a={1, 2})",
        "tool_call(a=" + "[" * 500 + "]" * 500 + ")",
        "tool_call(a=1",
        "",
    ],
)
def test_python_that_is_no_literal_call_is_text(code: str) -> None:
    assert literal_arguments(code) is None
    answer = f"weather\n ```python\n{code}\n```"
    text, _, calls = parse(chatglm3, answer, TOOLS)
    assert calls == []
    assert text == answer.strip()


def test_literals_keep_their_types() -> None:
    code = "tool_call(a='x', b=-1, c=2.5, d=None, e=True, f=['y', {'k': -2}], g={'h': 'i'})"
    assert literal_arguments(code) == {
        "a": "x", "b": -1, "c": 2.5, "d": None, "e": True, "f": ["y", {"k": -2}], "g": {"h": "i"},
    }  # fmt: skip


def test_parts_of_an_answer_are_calls_and_text() -> None:
    answer = f'\nI look.{ASSISTANT}weather\n{{"city": "a"}}{ASSISTANT}weather_map\n{{}}'
    assert parse(glm4, answer, TOOLS) == (
        "I look.", None, [("weather", {"city": "a"}), ("weather_map", {})],
    )  # fmt: skip


def test_several_tagged_calls_and_types_by_schema() -> None:
    call = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
    text, _, calls = parse(glm45, f"Yes.\n{call}\n{call}", TOOLS)
    assert text == "Yes."
    assert calls == [("weather", {"city": "1"})] * 2
    unknown = call.replace("weather", "other")
    assert parse(glm45, unknown, TOOLS)[2] == [("other", {"city": 1})]


def test_an_answer_that_is_cut_off_still_gives_whole_json() -> None:
    answer = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>a</arg_value>\n<arg_key>da"
    assert parse(glm45, answer, TOOLS)[2] == [("weather", {"city": "a"})]
    assert parse(glm45, "<tool_call>wea", TOOLS)[2] == [("wea", {})]
    assert parse(z1, "I am thinking", TOOLS) == ("", "I am thinking", [])
