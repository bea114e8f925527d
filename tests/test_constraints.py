"""Answers of a given form, from networks of random weights: nothing but the form guides them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import glimmer
from glimmer import Constraint
from glimmer.engine import engine
from glimmer.errors import InvalidParameterError
from glimmer.loader import LoadedModel
from tests.support.tiny_gguf import tiny_gguf
from tests.test_export import folder

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["猫", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
TOOLS: list[Mapping[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"enum": ["北京", "Paris"]},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                    "map": {"type": "boolean"},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
QUESTION = [{"role": "user", "content": "hi"}]
# (family, layout, name of the folder); the last two think before they answer.
MODELS = {
    "chatglm": ("chatglm", "official"),
    "chatglm2": ("chatglm2", "official"),
    "chatglm3": ("chatglm3", "official"),
    "glm4": ("glm4", "native"),
    "glm4_0414": ("glm4_0414", "native"),
    "glm45": ("glm45", "native"),
}


def params(**values: Any) -> glimmer.SamplingParams:
    return glimmer.SamplingParams(**{"temperature": 1.0, "top_p": 1.0, "seed": 0, **values})


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> glimmer.LLM:
    path = tmp_path_factory.mktemp("constraints") / "tiny.gguf"
    return glimmer.LLM(tiny_gguf(path, max_position=1024))


def answers(
    llm: glimmer.LLM, constraint: Constraint, count: int = 8, temperature: float = 1.0
) -> list[str]:
    given = params(constraint=constraint, max_new_tokens=900, temperature=temperature)
    outputs = llm.generate(["x"] * count, [replace(given, seed=i) for i in range(count)])
    assert [o.finish_reason for o in outputs] == ["stop"] * count
    return [o.text for o in outputs]


def test_json_of_a_schema(llm: glimmer.LLM) -> None:
    found = [json.loads(text) for text in answers(llm, Constraint.json_schema(SCHEMA))]
    for value in found:
        assert list(value) == ["name", "age", "kind"]
        assert len(value["name"]) <= 5
        assert 0 <= value["age"] <= 99
        assert value["kind"] in ("猫", "dog")
    assert len({value["age"] for value in found}) > 1


def test_a_regular_expression(llm: glimmer.LLM) -> None:
    pattern = r"[a-z]{2,4}-(19|20)\d\d"
    for text in answers(llm, Constraint.regex(pattern)):
        assert re.fullmatch(pattern, text)


def test_a_choice(llm: glimmer.LLM) -> None:
    options = ['say "yes"', "no\n", "也许"]
    found = answers(llm, Constraint.choice(options), count=12, temperature=9.0)
    assert set(found) <= set(options)
    assert len(set(found)) > 1


def test_a_grammar(llm: glimmer.LLM) -> None:
    sums = 'start: number ("+" number)~1..3 "=?"\nnumber: /[1-9][0-9]?/\n'
    for text in answers(llm, Constraint.grammar(sums)):
        assert re.fullmatch(r"[1-9]\d?(\+[1-9]\d?){1,3}=\?", text)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_form_is_followed_alike_with_and_without_drafts(
    llm: glimmer.LLM, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drafts are chosen by what steps took: here all take the same, whatever else runs.
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(engine, "time", clock)
    llm = glimmer.LLM(llm.model, max_model_len=llm.max_model_len)
    schema = {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in ("first_one", "second_one", "x")},
        "required": ["first_one", "second_one", "x"],
    }
    values: dict[str, Any] = {
        **{"temperature": temperature, "constraint": Constraint.json_schema(schema)},
        "max_new_tokens": 200,
    }
    before = llm.stats
    drafted = llm.generate("y", params(**values))[0]
    after = llm.stats
    plain = llm.generate("y", params(speculation=False, **values))[0]
    assert drafted.token_ids == plain.token_ids
    assert after.num_accepted_drafts > before.num_accepted_drafts, "keys are forced"
    assert after.num_steps - before.num_steps < llm.stats.num_steps - after.num_steps


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: Constraint.json_schema("{"), "schema is not JSON"),
        (lambda: Constraint.json_schema({"type": "strange"}), "json schema cannot be followed"),
        (lambda: Constraint.regex("(a"), "regex cannot be followed: .*unclosed group"),
        (lambda: Constraint.grammar("start: nothing"), "unknown name"),
        (lambda: Constraint.choice([]), "non-empty texts"),
        (lambda: Constraint.choice("yes"), "non-empty texts"),
    ],
)
def test_forms_that_are_refused(llm: glimmer.LLM, make: Any, part: str) -> None:
    with pytest.raises(InvalidParameterError, match=re.compile(part, re.DOTALL)):
        llm.generate(["x", "y"], [params(), params(constraint=make())])
    assert llm.stats.num_running == llm.stats.num_waiting == 0


def test_the_answer_may_be_cut_by_its_length(llm: glimmer.LLM) -> None:
    long = Constraint.regex("[ab]{500}")
    output = llm.generate("x", params(constraint=long, max_new_tokens=9))[0]
    assert output.finish_reason == "length"
    assert set(output.text) <= {"a", "b"}


# --- tools, in each family's own syntax


@pytest.fixture(scope="module", params=MODELS)
def chat_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    family, layout = MODELS[request.param]
    path = folder(tmp_path_factory.mktemp(family), family, layout, max_position=4096)
    return glimmer.load(path, family=family)


def check_call(call: Any) -> None:
    arguments = call.parsed()
    if call.name == "now":
        assert arguments == {}
        return
    assert call.name == "weather"
    assert arguments["city"] in ("北京", "Paris")
    assert set(arguments) <= {"city", "days", "map"}
    assert isinstance(arguments.get("days", 1), int)
    assert arguments.get("map", True) in (True, False)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_is_made_in_the_familys_own_syntax(chat_model: LoadedModel, choice: Any) -> None:
    llm = glimmer.LLM(chat_model)
    for seed in range(6):
        output = llm.chat(
            QUESTION,
            params(seed=seed, max_new_tokens=1500),
            TOOLS,
            tool_choice=choice,
            thinking=False,
        )
        assert output.tool_calls, output.text
        assert output.finish_reason in ("tool_calls", "length")
        # The last may have been cut off.
        for call in output.tool_calls[: None if output.finish_reason == "tool_calls" else -1]:
            check_call(call)
        if choice != "required":
            assert output.tool_calls[0].name == "weather"


def test_none_and_auto_leave_the_model_free(chat_model: LoadedModel) -> None:
    llm = glimmer.LLM(chat_model)
    short = params(max_new_tokens=8)
    plain = llm.chat(QUESTION, short)
    without = llm.chat(QUESTION, short, TOOLS, tool_choice="none")
    assert without.token_ids == plain.token_ids
    assert without.usage.prompt_tokens == plain.usage.prompt_tokens
    offered = llm.chat(QUESTION, short, TOOLS)
    assert offered.usage.prompt_tokens > plain.usage.prompt_tokens


@pytest.mark.parametrize(
    ("choice", "part"),
    [
        ("always", "auto, none, required"),
        ({"function": {"name": "sing"}}, "'sing', but the tools offered are weather, now"),
        ({}, "None, but"),
    ],
)
def test_choices_that_are_refused(chat_model: LoadedModel, choice: Any, part: str) -> None:
    with pytest.raises(InvalidParameterError, match=part):
        glimmer.LLM(chat_model).chat(QUESTION, None, TOOLS, tool_choice=choice)


def test_a_choice_needs_tools_and_no_other_form(chat_model: LoadedModel) -> None:
    llm = glimmer.LLM(chat_model)
    with pytest.raises(InvalidParameterError, match="no tools are offered"):
        llm.chat(QUESTION, tool_choice="required")
    form = params(constraint=Constraint.json_object())
    with pytest.raises(InvalidParameterError, match="leave one of them out"):
        llm.chat(QUESTION, form, TOOLS, tool_choice="required")


def test_a_form_begins_after_the_thought(tmp_path: Path) -> None:
    path = folder(tmp_path, "glm45", "native", max_position=1024)
    model = glimmer.load(path, family="glm45")
    llm = glimmer.LLM(model)
    end = model.tokenizer.encode("</think>")
    assert len(end) == 1
    # Of what is free, nothing but letters and the end of the thought may come.
    words = {token: 30.0 for text in "abc" for token in model.tokenizer.encode(text)}
    output = llm.chat(
        QUESTION,
        params(
            constraint=Constraint.choice(["yes", "no"]),
            logit_bias={**words, end[0]: 28.0},
            max_new_tokens=200,
        ),
    )
    assert output.finish_reason == "stop"
    assert output.text.endswith(("yes", "no"))  # what comes before is no thought to its parser
    ids = list(output.token_ids)
    assert set(ids[: ids.index(end[0])]) <= set(words)
    unthinking = llm.chat(
        QUESTION, params(constraint=Constraint.choice(["yes", "no"])), thinking=False
    )
    assert unthinking.text in ("yes", "no")
    assert end[0] not in unthinking.token_ids
