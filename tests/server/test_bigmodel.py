"""The hosted platform's own clients, zai-sdk and zhipuai, against a real server."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

with warnings.catch_warnings():
    # Both declare their models in pydantic's older way.
    warnings.simplefilter("ignore")
    import zai
    import zai.core
    import zhipuai

from glimmer.server.run import Server
from tests.server.test_openai import QUESTION, SCHEMA, TOOLS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
VALUES: dict[str, Any] = {"model": "glm-4-plus", "messages": QUESTION, "max_tokens": 24, "seed": 5}


@pytest.fixture(params=["zai", "zhipuai"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    values: dict[str, Any] = {
        "api_key": "0123456789abcdef.secret",
        "base_url": f"{server.url}/api/paas/v4",
        "max_retries": 0,
    }
    if request.param == "zai":
        with zai.ZaiClient(**values) as found:
            yield found
    else:
        found = zhipuai.ZhipuAI(**values)
        yield found
        found.close()


def sdk_error(client: Any, name: str) -> type[Exception]:
    error: type[Exception] = getattr(
        zai.core if type(client).__module__.startswith("zai") else zhipuai, name
    )
    return error


def test_chat_and_stream_say_the_same(client: Any) -> None:
    whole = client.chat.completions.create(**VALUES, request_id="mine-7")
    assert whole.request_id == "mine-7"
    assert whole.model == "glm-4-plus"
    assert whole.choices[0].finish_reason in ("stop", "length")
    pieces, last = "", None
    for chunk in client.chat.completions.create(**VALUES, stream=True):
        pieces += chunk.choices[0].delta.content or ""
        last = chunk
    assert pieces == whole.choices[0].message.content
    assert last is not None
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_do_sample_false_is_greedy(client: Any) -> None:
    values = {**VALUES, "seed": None}
    answers = {
        client.chat.completions.create(**values, do_sample=False).choices[0].message.content
        for _ in range(2)
    }
    # The SDKs send a temperature of 0 as do_sample: false.
    answers.add(client.chat.completions.create(**values, temperature=0).choices[0].message.content)
    assert len(answers) == 1


def test_tools_there_and_back(client: Any, server: Server) -> None:
    values = {**VALUES, "tools": TOOLS, "tool_choice": "required", "max_tokens": 400, "seed": 3}
    message = client.chat.completions.create(**values).choices[0].message
    calls = message.tool_calls
    assert calls[0].function.name == "weather"
    assert json.loads(calls[0].function.arguments)["city"] in ("Paris", "北京")
    # Without tool_stream a call comes whole.
    told = [
        piece
        for chunk in client.chat.completions.create(**values, stream=True)
        for piece in chunk.choices[0].delta.tool_calls or ()
    ]
    assert [t.function.arguments for t in told] == [c.function.arguments for c in calls]
    turn = {"role": "tool", "tool_call_id": calls[0].id, "content": "晴"}
    asked = [*QUESTION, message.model_dump(exclude_none=True), turn]
    after = client.chat.completions.create(**{**VALUES, "messages": asked, "tools": TOOLS})
    assert after.usage.prompt_tokens > 0


def test_tool_stream(server: Server) -> None:
    values = {**VALUES, "tools": TOOLS, "tool_choice": "required", "max_tokens": 400, "seed": 3}
    values |= {"stream": True, "tool_stream": True}
    url = f"{server.url}/api/paas/v4/chat/completions"
    lines = httpx.post(url, json=values).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    pieces = [
        call["function"]
        for chunk in chunks
        for call in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert pieces[0] == {"name": "weather", "arguments": ""}
    assert len(pieces) > 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_json(client: Any) -> None:
    values = {**VALUES, "max_tokens": 200}
    form: dict[str, Any] = {"type": "json_object"}
    text = client.chat.completions.create(**values, response_format=form, stop=["}"])
    assert text.choices[0].message.content.startswith("{")
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    text = client.chat.completions.create(**values, response_format=form)
    assert set(json.loads(text.choices[0].message.content)) == {"yes", "size"}


def test_thinking(server: Server) -> None:
    url = f"{server.url}/api/paas/v4/chat/completions"
    values = {**VALUES, "model": "glm-4.5"}
    free, asked, not_asked = (
        httpx.post(url, json={**values, **given}).json()["usage"]["prompt_tokens"]
        for given in ({}, {"thinking": {"type": "enabled"}}, {"thinking": {"type": "disabled"}})
    )
    # The family's template says /nothink and closes the thought.
    assert free == asked < not_asked


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"model": "gpt-5"}, "1211"),
        ({"extra_body": {"min_p": 3}}, "1214"),
        ({"max_tokens": 0}, "1214"),
        ({"messages": []}, "1214"),
        ({"messages": [{"role": "user", "content": "a b " * 9000}]}, "1261"),
        ({"tools": [{"type": "web_search", "web_search": {"enable": True}}]}, "1210"),
        ({"tools": [{"type": "retrieval", "retrieval": {"knowledge_id": "1"}}]}, "1210"),
        ({"response_format": {"type": "json_schema"}}, "1213"),
    ],
)
def test_refusals(client: Any, values: dict[str, Any], code: str) -> None:
    with pytest.raises(sdk_error(client, "APIRequestFailedError")) as refused:
        client.chat.completions.create(**{**VALUES, **values})
    assert refused.value.response.json()["error"]["code"] == code


def test_a_request_id_that_lives_is_refused(server: Server) -> None:
    url = f"{server.url}/api/paas/v4/chat/completions"
    values = {**VALUES, "request_id": "twice", "max_tokens": 3000, "stream": True}
    with httpx.stream("POST", url, json=values) as first:
        lines = first.iter_lines()
        assert next(lines).startswith("data: ")
        assert [*lines][-2] == "data: [DONE]"
    live = (None, "twice")
    assert live not in server.service.live_requests
    server.service.live_requests.add(live)
    try:
        for stream in (False, True):
            again = httpx.post(url, json={**values, "stream": stream})
            assert again.status_code == 400
            assert again.json()["error"]["code"] == "1231"
        other = httpx.post(url, json={**VALUES, "request_id": "other", "max_tokens": 1})
        assert other.status_code == 200
    finally:
        server.service.live_requests.discard(live)


def test_fields_of_openais_dialect_work_too(server: Server) -> None:
    url = f"{server.url}/api/paas/v4/chat/completions"
    values = {**VALUES, "n": 2, "choice": ["yes", "no"], "frequency_penalty": 0.5}
    answer = httpx.post(url, json=values).json()
    assert [c["index"] for c in answer["choices"]] == [0, 1]
    assert {c["message"]["content"] for c in answer["choices"]} <= {"yes", "no"}


def test_there_is_nothing_else(server: Server) -> None:
    answer = httpx.post(f"{server.url}/api/paas/v4/images/generations", json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "1222"
    assert httpx.get(f"{server.url}/api/paas/v4/chat/completions").json()["error"]["code"] == "1212"


def test_requests_of_one_trace_may_share_its_header(server: Server) -> None:
    url = f"{server.url}/api/paas/v4/chat/completions"
    head = {"x-request-id": "trace-1"}
    values = {**VALUES, "max_tokens": 4000, "loop_guard": False, "stream": True}
    with httpx.stream("POST", url, json=values, headers=head) as first:
        next(first.iter_lines())
        assert httpx.post(url, json=VALUES, headers=head).status_code == 200
