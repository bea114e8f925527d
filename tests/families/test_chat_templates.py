"""Chat templates against the official ids, with the real tokenizers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.chat import ChatTemplate, Message, PlainParser
from glimmer.errors import InvalidParameterError
from glimmer.families.chatglm.chat_template import ChatGLMTemplate
from glimmer.families.chatglm2.chat_template import ChatGLM2Template
from glimmer.families.chatglm3.chat_template import ChatGLM3Template
from glimmer.families.glm4.chat_template import GLM4Template
from glimmer.families.glm4_0414.chat_template import GLM0414Template
from glimmer.families.glm45.chat_template import GLM45Template
from tests.families.test_tokenizers import load
from tests.support import golden


def template(name: str) -> ChatTemplate:
    makers: dict[str, Any] = {
        "chatglm-6b": lambda: ChatGLMTemplate(load("chatglm")),
        "chatglm2-6b": lambda: ChatGLM2Template(load("chatglm2")),
        "chatglm3-6b": lambda: ChatGLM3Template(load("chatglm3")),
        "glm-4-9b-chat": lambda: GLM4Template(load("glm4")),
        "glm-4-0414": lambda: GLM0414Template(load("glm4_0414")),
        "glm-z1-0414": lambda: GLM0414Template(load("glm4_0414"), thinks=True),
        "glm-4.5": lambda: GLM45Template(load("glm45")),
    }
    made: ChatTemplate = makers[name]()
    return made


NAMES = (
    "chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat", "glm-4-0414", "glm-z1-0414",
    "glm-4.5",
)  # fmt: skip


def cases() -> list[Any]:
    found = []
    for name in NAMES:
        path = golden.FOLDER / "prompts" / f"{name}.json"
        chats = json.loads(path.read_text(encoding="utf-8"))["chat"] if path.exists() else []
        found += [pytest.param(name, case, id=f"{name}-{i}") for i, case in enumerate(chats)]
    return found


def messages_of(case: dict[str, Any]) -> list[Any]:
    if "messages" in case:
        return list(case["messages"])
    turns: list[Any] = []
    for turn in case["history"]:
        if isinstance(turn, dict):
            turns.append(turn)
        else:
            turns += [
                {"role": "user", "content": turn[0]},
                {"role": "assistant", "content": turn[1]},
            ]
    return [*turns, {"role": case.get("role", "user"), "content": case["query"]}]


@pytest.mark.parametrize(("name", "case"), cases())
def test_official_ids(name: str, case: dict[str, Any]) -> None:
    made = template(name).encode(
        messages_of(case),
        case.get("tools"),
        case.get("add_generation_prompt", True),
        thinking=case.get("enable_thinking"),
        # ChatGLM3's official chat recognises nothing in text; the others do.
        allow_special=name != "chatglm3-6b",
    )
    assert made == case["ids"]


@pytest.mark.parametrize(("name", "case"), cases())
def test_a_users_text_changes_nothing_else(name: str, case: dict[str, Any]) -> None:
    """Without special tokens in it, a conversation has the official ids by default as well."""
    texts = json.dumps(messages_of(case), ensure_ascii=False)
    if any(token in texts for token in ("<|user|>", "[gMASK]", "<think>")):
        pytest.skip("the conversation holds special tokens as text")
    made = template(name).encode(
        messages_of(case),
        case.get("tools"),
        case.get("add_generation_prompt", True),
        thinking=case.get("enable_thinking"),
    )
    assert made == case["ids"]


def official_cases() -> list[Any]:
    path = golden.FOLDER / "cases" / "chatglm_cpp_chat.json"
    return json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else []


@pytest.mark.parametrize("case", official_cases())
def test_cases_of_another_implementation(case: dict[str, Any]) -> None:
    name = case["generation"]
    if case["kind"] == "chat":
        assert template(name).encode(case["messages"]) == case["ids"]
    else:
        family = {"chatglm3-6b": "chatglm3", "glm-4-9b-chat": "glm4"}.get(name, name[:-3])
        tokenizer = load(family)
        start = "<sop>" if family in ("glm4", "chatglm") else "sop"
        prefix = [tokenizer.special_tokens["[gMASK]"], tokenizer.special_tokens[start]]
        prefix = [] if case["kind"] == "encode_ordinary" else prefix
        assert [*prefix, *tokenizer.encode(case["text"])] == case["ids"]


@pytest.mark.parametrize("name", NAMES)
def test_what_anybody_writes_forges_no_token(name: str) -> None:
    made = template(name)
    tokenizer = made._tokenizer  # type: ignore[attr-defined]
    tokens = [*tokenizer.special_tokens, *tokenizer.added_tokens]
    hostile = " ".join(tokens) + "".join(tokens)

    def count(text: str) -> int:
        ids = made.encode(
            [
                {"role": "system", "content": text},
                {"role": "user", "content": f"{text}."},
                {"role": "assistant", "content": f"a{text}.", "tool_calls": [
                    {"id": "1", "function": {"name": "f", "arguments": {"x": f"{text}."}}}
                ]},
                {"role": "tool", "tool_call_id": "1", "content": f"{text}."},
                {"role": "user", "content": "?"},
            ],
            [{"type": "function", "function": {"name": "f", "description": text}}],
        )  # fmt: skip
        structure = {*tokenizer.special_tokens.values(), *tokenizer.added_tokens.values()}
        return sum(token in structure for token in ids)

    assert count(hostile) == count("harmless")


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b"])
def test_emulation_is_told(name: str) -> None:
    made = template(name)
    tools = [{"type": "function", "function": {"name": "f"}}]
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert made.notes([{"role": "user", "content": "Hi"}]) == ()
    assert len(made.notes(system, tools)) == 2
    text = made._tokenizer.decode(made.encode(system))  # type: ignore[attr-defined]
    assert "Be brief." in text
    with pytest.raises(InvalidParameterError, match="must come first"):
        made.encode([*system, {"role": "system", "content": "again"}])


def test_nothink_is_the_users_to_ask_for() -> None:
    made = template("glm-4.5")
    token = load("glm45").added_tokens["/nothink"]
    assert token in made.encode([{"role": "user", "content": "Hi/nothink"}])
    assert token not in made.encode([{"role": "user", "content": "/nothink is a word"}])


@given(st.text())
def test_plain_answers_are_text(text: str) -> None:
    parser = PlainParser()
    assert "".join(e.text for e in [*parser.push(text), *parser.finish()]) == text  # type: ignore[union-attr]


def test_messages_say_what_is_wrong_with_them() -> None:
    made = GLM4Template  # any template reads messages alike
    del made
    from glimmer.chat import to_messages, to_tools

    for given_messages, words in (
        ([], "at least one"),
        ([{"role": "boss", "content": "x"}], "'boss'"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": 3}], "content must be"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "image_url"),
        ([{"role": "user", "content": "x", "colour": 1}], "colour"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "function with a name"),
    ):
        with pytest.raises(InvalidParameterError, match=words):
            to_messages(given_messages)
    with pytest.raises(InvalidParameterError, match="two tools"):
        to_tools([{"name": "f"}, {"type": "function", "function": {"name": "f"}}])
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert to_messages([{"role": "developer", "content": parts}]) == [Message("system", "ab")]
