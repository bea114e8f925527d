"""What vLLM is asked for, and how its answers are read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

import llguidance
import pytest

from glimmer.constraints import to_lark
from glimmer.engine import Constraint, Request, SamplingParams, TokenLogprobs
from glimmer.errors import GenerationError
from glimmer.vllm.body import completion_body
from glimmer.vllm.chunks import Chunk, StreamError, read_chunks


def request(stop_ids: tuple[int, ...] = (7, 3), priority: int = 0, **values: Any) -> Request:
    params = SamplingParams(**values)
    return Request(1, (5, 6), params, frozenset(stop_ids), params.seed or 0, priority=priority)


def body(in_thought: bool = False, **values: Any) -> dict[str, Any]:
    return completion_body(request(**values), "m", [5, 6, 8], 40, in_thought=in_thought)


def test_every_sampling_value_is_told_or_known_to_be_followed_here() -> None:
    told = {
        "temperature": 0.5, "top_p": 0.6, "top_k": 9, "min_p": 0.1, "repetition_penalty": 1.5,
        "presence_penalty": 0.25, "frequency_penalty": -0.5, "seed": 11, "logprobs": 4,
        "logit_bias": {2: -1.0},
    }  # fmt: skip
    sent = body(**told)
    assert sent["logit_bias"] == {"2": -1.0}
    assert {name: sent[name] for name in told.keys() - {"logit_bias"}} == {
        name: value for name, value in told.items() if name != "logit_bias"
    }
    # max_tokens and stop_token_ids come from the request, forms are tested below, the rest is seen
    # to by the answer (stop), the sequence (loop_guard) and requests of their own (n, best_of).
    here = {
        "max_new_tokens", "stop_token_ids", "ignore_eos", "constraint", "stop", "loop_guard", "n",
        "best_of", "speculation",
    }  # fmt: skip
    assert {f.name for f in fields(SamplingParams)} == told.keys() | here


def test_what_is_always_told() -> None:
    sent = body()
    assert (sent["model"], sent["prompt"], sent["max_tokens"]) == ("m", [5, 6, 8], 40)
    assert sent["stream"]
    assert sent["return_token_ids"]
    assert sent["ignore_eos"], "else the server's own files would end answers"
    assert sent["stop_token_ids"] == [3, 7]
    assert sent.keys().isdisjoint({"seed", "logprobs", "logit_bias", "structured_outputs", "n"})
    assert "priority" not in sent, "vLLM refuses it unless it was started for that"
    assert body(priority=-3)["priority"] == -3
    assert body(seed=2**64 - 1)["seed"] == 2**63 - 1, "vLLM's seeds are int64"
    assert body(n=2, best_of=3)["logprobs"] == 0, "the best is found by the chosen tokens'"


def test_a_form_begins_after_the_thought() -> None:
    form = Constraint.choice(["ja", "nein"])
    sent = body(in_thought=True, constraint=form, logit_bias={1: 2.0})
    assert "structured_outputs" not in sent
    assert sent["stop_token_ids"] == []
    assert sent["logit_bias"] == {"1": 2.0, "3": -100.0, "7": -100.0}, "a thought ends no answer"
    sent = body(constraint=form)
    assert sent["structured_outputs"] == {"grammar": '%llguidance {}\nstart: "ja" | "nein"'}
    assert sent["stop_token_ids"] == [3, 7]


@pytest.mark.parametrize(
    "form",
    [
        Constraint.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}}),
        Constraint.json_schema(True),
        Constraint.json_object(),
        Constraint.regex('[0-9]{3}/"a"\n|\\d'),
        Constraint.choice(['"', "\\", "你\n"]),
        Constraint.grammar('start: "a" "b"'),
    ],
)
def test_forms_are_grammars_that_the_library_reads(form: Constraint) -> None:
    text = "%llguidance {}\n" + to_lark(form)
    assert "whitespace_pattern" not in text, "vLLM's older library would pass over it"
    # As vLLM's backend "guidance" does it.
    grammar = llguidance.grammar_from("grammar", text)
    assert llguidance.LLMatcher.validate_grammar(grammar) == ""


def chunks(*lines: str, num_top: int = 0) -> list[Chunk]:
    async def give() -> AsyncIterator[str]:
        for line in lines:
            yield line

    async def take() -> list[Chunk]:
        return [chunk async for chunk in read_chunks(give(), num_top)]

    return asyncio.run(take())


def event(**choice: Any) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "text": "", **choice}]})


def test_tokens_are_read() -> None:
    usage = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    assert chunks(
        ": keep-alive",
        event(token_ids=[4, 5]),
        "",
        event(token_ids=[6], finish_reason="length"),
        "data: " + json.dumps({"choices": [], "usage": usage}),
        "data: [DONE]",
        "data: nothing is read behind the end",
    ) == [
        Chunk((4, 5), None, None, None),
        Chunk((6,), None, "length", None),
        Chunk((), None, None, 2),
    ]


def test_logprobs_are_read() -> None:
    told = {
        "tokens": ["token_id:9"],
        "token_logprobs": [-3.0],
        "top_logprobs": [{"token_id:9": -3.0, "token_id:1": -0.5, "token_id:2": -1.0}],
    }
    (chunk,) = chunks(event(token_ids=[9], logprobs=told), num_top=2)
    assert chunk.logprobs == (TokenLogprobs(-3.0, ((1, -0.5), (2, -1.0))),)
    (chunk,) = chunks(event(token_ids=[9], logprobs=told), num_top=0)
    assert chunk.logprobs == (TokenLogprobs(-3.0, ()),)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("data: {", "no answer of vLLM"),
        ("data: []", "no answer of vLLM"),
        ("data: {}", "no answer of vLLM"),
        (event(), "token_ids"),
        (event(token_ids=None), "no token_ids"),
        (event(token_ids=["x"]), "no answer of vLLM"),
        (event(token_ids=[1], logprobs={"token_logprobs": [], "top_logprobs": []}), "0 logprobs"),
    ],
)
def test_what_is_no_answer_is_said(line: str, part: str) -> None:
    with pytest.raises(GenerationError, match=part):
        chunks(line)


def test_an_error_in_the_stream_is_told_as_one() -> None:
    for told, code, message in (
        ({"message": "CUDA", "code": 500}, 500, "CUDA"),
        ({"message": "", "type": "InternalServerError", "code": 500}, 500, "InternalServerError"),
        ({"message": "no such form", "code": 400}, 400, "no such form"),
    ):
        with pytest.raises(StreamError, match=message) as found:
            chunks("data: " + json.dumps({"error": told}))
        assert found.value.code == code
