"""OpenAI's own client against a real server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from glimmer.server.run import Server

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "北京"]}},
                "required": ["city"],
            },
        },
    }
]
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}, "size": {"enum": ["S", "M"]}},
    "required": ["yes", "size"],
    "additionalProperties": False,
}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["glm-4", "glm-4.5", "plain", "glm-4-plus"]
    assert client.models.retrieve("glm-4-plus").owned_by == "glimmer"
    with pytest.raises(openai.NotFoundError, match="There is no model called 'gpt-5'"):
        client.models.retrieve("gpt-5")


@pytest.mark.parametrize("model", ["glm-4", "glm-4.5", "plain"])
def test_chat_and_stream_say_the_same(client: openai.OpenAI, model: str) -> None:
    values: dict[str, Any] = {
        "model": model,
        "messages": QUESTION,
        "max_tokens": 24,
        "seed": 7,
        "temperature": 0.9,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**values)
    (choice,) = whole.choices
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert choice.finish_reason in ("stop", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    pieces, entries, reasons, usage = "", [], [], None
    with client.chat.completions.create(
        **values, stream=True, stream_options={"include_usage": True}
    ) as chunks:
        for chunk in chunks:
            assert chunk.model == model
            usage = chunk.usage or usage
            for part in chunk.choices:
                pieces += part.delta.content or ""
                reasons.append(part.finish_reason)
                if part.logprobs is not None:
                    entries += part.logprobs.content or []
    assert pieces == choice.message.content
    assert [r for r in reasons if r] == [choice.finish_reason]
    assert [e.token for e in entries] == [e.token for e in choice.logprobs.content]
    assert all(len(e.top_logprobs) == 2 for e in entries)
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_several_answers(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {
        "model": "plain", "messages": QUESTION, "max_completion_tokens": 8, "seed": 1, "n": 3,
    }  # fmt: skip
    whole = client.chat.completions.create(**values)
    assert [c.index for c in whole.choices] == [0, 1, 2]
    assert len({c.message.content for c in whole.choices}) > 1
    pieces = ["", "", ""]
    for chunk in client.chat.completions.create(**values, stream=True):
        for part in chunk.choices:
            pieces[part.index] += part.delta.content or ""
    assert pieces == [c.message.content for c in whole.choices]


def test_the_second_question_finds_the_first_in_the_cache(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {
        "model": "plain", "messages": [{"role": "user", "content": "abc " * 100}], "max_tokens": 2,
    }  # fmt: skip
    client.chat.completions.create(**values)
    usage = client.chat.completions.create(**values).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None
    assert usage.prompt_tokens_details.cached_tokens > 64


@pytest.mark.parametrize("model", ["glm-4", "glm-4.5"])
def test_tools_there_and_back(client: openai.OpenAI, model: str) -> None:
    values: dict[str, Any] = {
        "model": model,
        "tools": TOOLS,
        "max_tokens": 400,
        "seed": 3,
        "extra_body": {"thinking": {"type": "disabled"}},
    }
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(
            **values, messages=QUESTION, tool_choice=choice, parallel_tool_calls=False
        ).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.tool_calls is not None
        (call,) = answer.message.tool_calls
        assert call.type == "function"
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments)["city"] in ("Paris", "北京")
        name, arguments, reasons = "", "", []
        for chunk in client.chat.completions.create(
            **values,
            messages=QUESTION,
            tool_choice=choice,
            parallel_tool_calls=False,
            stream=True,
        ):
            for part in chunk.choices:
                reasons.append(part.finish_reason)
                for piece in part.delta.tool_calls or ():
                    assert piece.function is not None
                    name += piece.function.name or ""
                    arguments += piece.function.arguments or ""
        assert (name, arguments) == ("weather", call.function.arguments)
        assert reasons[-1] == "tool_calls"
    turn = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    after = client.chat.completions.create(
        **{**values, "max_tokens": 8},
        messages=[*QUESTION, answer.message, turn],
        tool_choice="none",
    )
    assert after.choices[0].message.content is not None


def test_json(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {
        "model": "plain", "messages": QUESTION, "max_tokens": 200, "seed": 2, "temperature": 1,
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    text = client.chat.completions.create(**values, response_format=form).choices[0].message.content
    answer = json.loads(text or "")
    assert set(answer) == {"yes", "size"}
    assert answer["size"] in ("S", "M")
    assert isinstance(answer["yes"], bool)
    for form, pattern in (
        ({"regex": "[0-9]{3}"}, "0123456789"),
        ({"grammar": 'start: "a" "b"'}, "ab"),
        ({"choice": ["ja", "nein"]}, "janein"),
    ):
        text = client.chat.completions.create(**values, extra_body=form).choices[0].message.content
        assert text
        assert set(text) <= set(pattern)


def test_completions(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {"model": "plain", "max_tokens": 6, "temperature": 0, "logprobs": 1}
    whole = client.completions.create(prompt=["The quick", "dog"], n=2, **values)
    assert [c.index for c in whole.choices] == [0, 1, 2, 3]
    assert whole.choices[0].text == whole.choices[1].text, "greedy answers are one"
    ids = httpx.post(
        f"{client.base_url}".replace("/v1/", "/tokenize"),
        json={"model": "plain", "prompt": "The quick"},
    ).json()["tokens"]
    assert client.completions.create(prompt=ids, **values).choices[0].text == whole.choices[0].text
    told = whole.choices[0].logprobs
    assert told is not None
    assert len(told.tokens or ()) == len(told.token_logprobs or ()) == 6
    assert len(told.top_logprobs or ()) == 6
    pieces = ["", ""]
    for chunk in client.completions.create(prompt=["The quick", "dog"], stream=True, **values):
        for part in chunk.choices:
            pieces[part.index] += part.text
    assert pieces == [whole.choices[0].text, whole.choices[2].text]
    values.pop("logprobs")
    echoed = client.completions.create(prompt="dog", echo=True, **values).choices[0].text
    assert echoed == "dog" + whole.choices[2].text
    best = client.completions.create(prompt="dog", n=2, best_of=4, seed=1, **values)
    assert len(best.choices) == 2


def test_penalties_and_biases_are_followed(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {"model": "plain", "prompt": "dog", "max_tokens": 12}
    plain = client.completions.create(**values, temperature=0).choices[0].text
    biased = client.completions.create(
        **values, temperature=0, logit_bias={"70": 100}, presence_penalty=0
    )
    assert biased.choices[0].text != plain
    (first, *others) = biased.choices[0].text
    assert set(others) <= {first}
    less = client.completions.create(
        **values, temperature=0, extra_body={"repetition_penalty": 5.0, "min_p": 0.1, "top_k": 5}
    )
    assert len(less.choices[0].text) > 0
    stopped = client.completions.create(**values, temperature=0, stop=[plain[3:5]])
    assert stopped.choices[0].text == plain[: plain.index(plain[3:5])]
    assert stopped.choices[0].finish_reason == "stop"


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["The quick brown fox", "The quick brown dog", "你好"]
    answer = client.embeddings.create(model="plain", input=texts)
    vectors = np.array([d.embedding for d in answer.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 10
    raw = client.embeddings.create(model="plain", input=texts[0], encoding_format="base64").data[0]
    packed = np.frombuffer(base64.b64decode(raw.embedding), "<f4")  # type: ignore[arg-type]
    np.testing.assert_allclose(packed, vectors[0], atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="cannot be shortened"):
        client.embeddings.create(model="plain", input="a", dimensions=8)
    with pytest.raises(openai.BadRequestError, match="no token"):
        client.embeddings.create(model="plain", input="")


def test_tokens_there_and_back(server: Server) -> None:
    with httpx.Client(base_url=server.url) as http:
        told = http.post(
            "/tokenize", json={"model": "plain", "prompt": "dog 你", "return_token_strs": True}
        ).json()
        assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
        back = http.post("/detokenize", json={"model": "plain", "tokens": told["tokens"]}).json()
        assert back == {"prompt": "dog 你"}
        chat = http.post("/tokenize", json={"model": "glm-4", "messages": QUESTION}).json()
        assert chat["max_model_len"] == 4096
        bad = http.post("/detokenize", json={"model": "plain", "tokens": [10**6]})
        assert bad.status_code == 400
        assert bad.json()["error"]["param"] == "tokens"


@pytest.mark.parametrize(
    ("values", "error", "part"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "There is no model called 'gpt-5' here"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "king"}]}, openai.BadRequestError, "role must be one of"),
        ({"top_logprobs": 2}, openai.BadRequestError, "needs logprobs"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "token ids"),
        ({"logit_bias": {"1000000": 1}}, openai.BadRequestError, "vocabulary"),
        ({"tool_choice": "required"}, openai.BadRequestError, "no tools are offered"),
        ({"functions": []}, openai.BadRequestError, "use tools"),
        ({"modalities": ["audio"]}, openai.BadRequestError, "text only"),
        ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "schema"),
        ({"extra_body": {"regex": "("}}, openai.BadRequestError, "regex"),
        ({"extra_body": {"regex": "a", "choice": ["b"]}}, openai.BadRequestError, "exclude"),
        (
            {"messages": [{"role": "user", "content": "a b " * 5000}]},
            openai.BadRequestError,
            "the context holds 4096",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(
    client: openai.OpenAI, values: dict[str, Any], error: type[Exception], part: str, stream: bool
) -> None:
    given: dict[str, Any] = {"model": "plain", "messages": QUESTION, "max_tokens": 4, **values}
    with pytest.raises(error, match=part):
        client.chat.completions.create(**given, stream=stream)


def test_the_code_of_a_prompt_that_is_too_long(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="plain", messages=[{"role": "user", "content": "a b " * 5000}]
        )
    assert refused.value.code == "context_length_exceeded"


def test_what_is_not_followed_is_said(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        json={"model": "plain", "messages": QUESTION, "max_tokens": 1, "store": True, "zap": 1},
        headers={"x-request-id": "mine-1"},
    )
    assert answer.status_code == 200
    assert answer.headers["x-glimmer-ignored"] == "store, zap"
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["id"] == "chatcmpl-mine-1"
