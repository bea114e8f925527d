"""Anthropic's own client against a real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import anthropic
import anyio
import httpx
import pytest

from glimmer.chat import ToolArgumentsDelta, ToolCall, ToolCallEnd, ToolCallStart
from glimmer.outputs import RequestOutput, Timing, Usage
from glimmer.server.anthropic import messages, replies
from glimmer.server.anthropic.requests import MessageBody
from glimmer.server.errors import ApiError
from glimmer.server.run import Server
from glimmer.server.service import Streaming
from tests.support.server import running

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS: list[Any] = [
    {
        "name": "weather",
        "description": "The weather of a city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "北京"]}},
            "required": ["city"],
        },
    }
]
GREEDY = {"temperature": 0}


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as found:
        yield found


def total_input(usage: Any) -> int:
    """Anthropic's input tokens leave out those that were in the cache."""
    total: int = usage.input_tokens + usage.cache_read_input_tokens
    return total


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.parametrize("model", ["glm-4", "glm-4.5", "plain"])
def test_a_message_and_its_stream_say_the_same(client: anthropic.Anthropic, model: str) -> None:
    values: dict[str, Any] = {
        "model": model,
        "messages": QUESTION,
        "max_tokens": 24,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "extra_body": GREEDY,
    }
    whole = client.messages.create(**values)
    assert whole.id.startswith("msg_")
    assert whole.model == model
    assert whole.stop_reason in ("end_turn", "max_tokens")
    assert whole.usage.output_tokens > 0
    counted = client.messages.count_tokens(model=model, messages=QUESTION, system=values["system"])
    assert counted.input_tokens == total_input(whole.usage)
    with client.messages.stream(**values) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert [b.to_dict() for b in final.content] == [b.to_dict() for b in whole.content]
    assert (final.stop_reason, final.stop_sequence) == (whole.stop_reason, None)
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert total_input(final.usage) == total_input(whole.usage)


def test_the_events_are_as_documented(server: Server) -> None:
    body = {"model": "plain", "messages": QUESTION, "max_tokens": 4, "stream": True, **GREEDY}
    answer = httpx.post(f"{server.url}/v1/messages", json=body, headers={"x-request-id": "mine"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    data = [json.loads(lines[-1].removeprefix("data: ")) for lines in events]
    assert [lines[0] for lines in events] == [f"event: {d['type']}" for d in data]
    kinds = [d["type"] for d in data]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert data[0]["message"]["id"] == "msg_mine"
    assert data[0]["message"]["content"] == []
    assert data[2]["content_block"] == {"type": "text", "text": ""}
    assert data[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert data[-2]["usage"]["output_tokens"] == 4


def test_the_platform_has_it_elsewhere(server: Server) -> None:
    base = f"{server.url}/api/anthropic"
    with anthropic.Anthropic(base_url=base, api_key="none", max_retries=0) as client:
        answer = client.messages.create(model="glm-4", messages=QUESTION, max_tokens=2)
        assert answer.usage.output_tokens <= 2
        with pytest.raises(anthropic.NotFoundError, match="There is no model called 'claude'"):
            client.messages.create(model="claude", messages=QUESTION, max_tokens=2)
        with pytest.raises(anthropic.NotFoundError, match="nothing at this address"):
            client.models.list()


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    values: dict[str, Any] = {
        "model": "plain", "messages": QUESTION, "max_tokens": 12, "extra_body": GREEDY,
    }  # fmt: skip
    text = text_of(client.messages.create(**values))
    values["stop_sequences"] = ["never", text[5:7]]
    with client.messages.stream(**values) as stream:
        final = stream.get_final_message()
    for stopped in (client.messages.create(**values), final):
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[5:7])
        assert text_of(stopped) == text[: text.index(text[5:7])]


def test_the_context_is_full(client: anthropic.Anthropic) -> None:
    turn = {"role": "user", "content": "a b " * 500}
    values: dict[str, Any] = {"model": "plain", "messages": [turn]}
    count = client.messages.count_tokens(**values).input_tokens
    turn["content"] *= 4090 // count
    count = client.messages.count_tokens(**values).input_tokens
    turn["content"] += "a b " * ((4090 - count) // 4)
    form = {"type": "json_schema", "schema": {"type": "string", "minLength": 2000}}
    answer = client.messages.create(**values, max_tokens=4000, output_config={"format": form})
    assert answer.stop_reason == "model_context_window_exceeded"
    assert total_input(answer.usage) + answer.usage.output_tokens == 4096


@pytest.mark.parametrize("model", ["glm-4", "glm-4.5"])
def test_tools_there_and_back(client: anthropic.Anthropic, model: str) -> None:
    values: dict[str, Any] = {
        "model": model, "tools": TOOLS, "max_tokens": 400, "extra_body": {"seed": 3},
    }  # fmt: skip
    for choice in (
        {"type": "any", "disable_parallel_tool_use": True},
        {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    ):
        answer = client.messages.create(**values, messages=QUESTION, tool_choice=choice)
        assert answer.stop_reason == "tool_use"
        call = answer.content[-1]
        assert call.type == "tool_use"
        assert call.name == "weather"
        assert call.input["city"] in ("Paris", "北京")
        eager = [{**TOOLS[0], "eager_input_streaming": True}]
        for tools in (TOOLS, eager):
            with client.messages.stream(
                **{**values, "tools": tools}, messages=QUESTION, tool_choice=choice
            ) as stream:
                final = stream.get_final_message()
            assert final.stop_reason == "tool_use"
            last = final.content[-1]
            assert last.type == "tool_use"
            assert (last.name, last.input) == ("weather", call.input)
    history = [
        *QUESTION,
        answer.to_param(),
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": call.id,
                    "content": [{"type": "text", "text": "sunny"}],
                },
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    told = {"type": "none"}
    after = client.messages.create(
        **{**values, "max_tokens": 8}, messages=history, tool_choice=told
    )
    assert after.usage.output_tokens > 0
    counted = client.messages.count_tokens(
        model=model, messages=history, tools=TOOLS, tool_choice=cast("Any", told)
    )
    assert counted.input_tokens == total_input(after.usage)
    history[2]["content"][0].update(content="no such city", is_error=True)
    failed = client.messages.count_tokens(model=model, messages=history)
    assert failed.input_tokens > counted.input_tokens


def test_thoughts(client: anthropic.Anthropic) -> None:
    values: dict[str, Any] = {
        "model": "glm-4.5", "messages": QUESTION, "max_tokens": 16, "extra_body": GREEDY,
    }  # fmt: skip
    prompts = {}
    for kind in ("enabled", "disabled", "adaptive"):
        option: dict[str, Any] = {"type": kind}
        if kind == "enabled":
            option["budget_tokens"] = 1024
        prompts[kind] = total_input(client.messages.create(**values, thinking=option).usage)
        counted = client.messages.count_tokens(
            model="glm-4.5", messages=QUESTION, thinking=cast("Any", option)
        )
        assert counted.input_tokens == prompts[kind]
    assert prompts["enabled"] == prompts["adaptive"] < prompts["disabled"]
    unsaid = client.messages.create(**values)
    assert total_input(unsaid.usage) == prompts["disabled"]


def test_a_thought_that_comes_back(client: anthropic.Anthropic) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
    thought = {"type": "thinking", "thinking": "Let me look. " * 20, "signature": "local"}
    hidden = {"type": "redacted_thinking", "data": "zzz"}
    result = {"type": "tool_result", "tool_use_id": "toolu_1"}

    def count(*blocks: dict[str, Any]) -> int:
        turns = [
            *QUESTION,
            {"role": "assistant", "content": blocks},
            {"role": "user", "content": [result]},
        ]
        told = client.messages.count_tokens(model="glm-4.5", messages=cast("Any", turns))
        return told.input_tokens

    assert count(thought, hidden, call) > count(hidden, call) + 20


def test_a_form(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    answer = client.messages.create(
        model="plain",
        messages=QUESTION,
        max_tokens=100,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    (block,) = answer.content
    assert block.type == "text"
    assert isinstance(json.loads(block.text)["yes"], bool)


@pytest.mark.parametrize(
    ("values", "error", "part"),
    [
        ({"model": "claude"}, anthropic.NotFoundError, "There is no model called 'claude' here"),
        ({"extra_body": {"temperature": 1.5}}, anthropic.BadRequestError, "temperature"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"stop_sequences": [""]}, anthropic.BadRequestError, "stop_sequences"),
        ({"messages": [{"role": "user", "content": []}]}, anthropic.BadRequestError, "no block"),
        (
            {"messages": [*QUESTION, {"role": "assistant", "content": "{"}]},
            anthropic.BadRequestError,
            "cannot be continued",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            anthropic.BadRequestError,
            "messages.0.content.0: these models read text only",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]},
            anthropic.BadRequestError,
            "blocks here are text and tool_result",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            anthropic.BadRequestError,
            "tool_use_id must be text",
        ),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            anthropic.BadRequestError,
            "'web_search_20250305' is Anthropic's own",
        ),
        ({"tools": [{"name": "a"}]}, anthropic.BadRequestError, "input_schema is missing"),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "needs tools"),
        (
            {"tool_choice": {"type": "tool", "name": "zap"}, "tools": TOOLS},
            anthropic.BadRequestError,
            "names the tool 'zap'",
        ),
        (
            {"messages": [{"role": "user", "content": "a b " * 5000}]},
            anthropic.BadRequestError,
            "the context holds 4096",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(
    client: anthropic.Anthropic,
    values: dict[str, Any],
    error: type[anthropic.APIStatusError],
    part: str,
    stream: bool,
) -> None:
    given: dict[str, Any] = {"model": "plain", "messages": QUESTION, "max_tokens": 4, **values}
    with pytest.raises(error, match=part) as refused:
        client.messages.create(**given, stream=stream)
    assert refused.value.type in ("invalid_request_error", "not_found_error")
    body: Any = refused.value.body
    assert body["request_id"] == refused.value.request_id


def test_a_key_and_a_server_that_stops(models: list[dict[str, Any]]) -> None:
    values: dict[str, Any] = {"model": "plain", "messages": QUESTION, "max_tokens": 1}
    with running(models[2], api_key="open-sesame") as server:

        def client(**key: str) -> anthropic.Anthropic:
            return anthropic.Anthropic(base_url=server.url, max_retries=0, **key)  # type: ignore[arg-type]

        with client(api_key="wrong") as stranger:
            with pytest.raises(anthropic.AuthenticationError) as refused:
                stranger.messages.create(**values)
            assert refused.value.type == "authentication_error"
        for key in ({"api_key": "open-sesame"}, {"auth_token": "open-sesame"}):
            with client(**key) as friend:
                assert friend.messages.create(**values).usage.output_tokens == 1
        server.service.is_draining = True
        with client(api_key="open-sesame") as friend:
            with pytest.raises(anthropic.OverloadedError) as overloaded:
                friend.messages.create(**values)
            assert overloaded.value.type == "overloaded_error"


def test_the_second_question_finds_the_first_in_the_cache(client: anthropic.Anthropic) -> None:
    turn = {"role": "user", "content": "abc " * 100}
    values: dict[str, Any] = {"model": "plain", "messages": [turn], "max_tokens": 2}
    client.messages.create(**values)
    usage = client.messages.create(**values).usage
    assert (usage.cache_read_input_tokens or 0) > 64
    assert (
        total_input(usage)
        == client.messages.count_tokens(model="plain", messages=values["messages"]).input_tokens
    )


def test_every_kind_of_refusal_has_a_type_and_a_status() -> None:
    found = {
        kind: messages.render(ApiError(kind, "No."), "r")
        for kind in ("no_key", "permission", "too_large", "rate", "queue_full", "internal")
    }  # fmt: skip
    assert {kind: (status, body["error"]["type"]) for kind, (status, body) in found.items()} == {
        "no_key": (401, "authentication_error"),
        "permission": (403, "permission_error"),
        "too_large": (413, "request_too_large"),
        "rate": (429, "rate_limit_error"),
        "queue_full": (529, "overloaded_error"),
        "internal": (500, "api_error"),
    }


def test_what_is_not_followed_is_said(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/v1/messages",
        json={
            "model": "glm-4.5",
            "messages": QUESTION,
            "max_tokens": 1,
            "service_tier": "auto",
            "zap": 1,
            "metadata": {"user_id": "u"},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        },
        headers={"x-request-id": "mine-1"},
    )
    assert answer.status_code == 200
    assert answer.headers["x-glimmer-ignored"] == "service_tier, zap, thinking.budget_tokens"
    assert answer.headers["request-id"] == "mine-1"


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        ('{"a": ', {"INVALID_JSON": '{"a": '}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ('{"a": 1e999}', {"INVALID_JSON": '{"a": 1e999}'}),
        ('{"a": NaN}', {"INVALID_JSON": '{"a": NaN}'}),
        ('"\\ud800"', {"INVALID_JSON": '"\\ud800"'}),
    ],
)
def test_input_is_an_object_whatever_the_model_wrote(arguments: str, given: dict[str, Any]) -> None:
    assert replies.tool_input(arguments) == given
    json.dumps(given).encode()


# What random models never say: told by outputs made up


def output(**values: Any) -> RequestOutput:
    made: dict[str, Any] = {
        "index": 0,
        "token_ids": (1,),
        "text": "",
        "delta": "",
        "finish_reason": None,
        "logprobs": None,
        "usage": Usage(7, 3, 2),
        "timing": Timing(0.0, 0.0, 0.0, None),
        **values,
    }
    return RequestOutput(**made)


def events_of(*outputs: RequestOutput, error: ApiError | None = None, **values: Any) -> list[Any]:
    async def stream() -> AsyncIterator[RequestOutput]:
        for item in outputs:
            yield item
        if error is not None:
            raise error

    body = MessageBody(
        **{"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 9, **values}
    )

    async def collect() -> list[Any]:
        streaming = cast("Streaming", stream())
        found = [e async for e in messages._events(streaming, {"id": "msg_1"}, body, "r")]
        return [json.loads(e.decode().split("data: ", 1)[1]) for e in found]

    return anyio.run(collect)


def contents(events: list[Any]) -> list[Any]:
    """The blocks, each with the kinds of what came between its start and its stop."""
    found: list[Any] = []
    opened = None
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert opened is None
                opened = event["index"]
                assert opened == len(found)
                found.append([event["content_block"]["type"]])
            case "content_block_delta":
                assert event["index"] == opened
                delta = event["delta"]
                found[-1].append(next(v for k, v in delta.items() if k != "type"))
            case "content_block_stop":
                assert event["index"] == opened
                opened = None
    assert opened is None
    return found


CALL = (ToolCallStart(0, "call_1", "weather"), ToolArgumentsDelta(0, '{"city": '))
REST = (ToolArgumentsDelta(0, '"Paris"}'), ToolCallEnd(0))


def test_blocks_come_one_after_the_other() -> None:
    outputs = [
        output(reasoning_delta="Hm"),
        output(reasoning_delta="m.", delta="Let "),
        output(delta="me.", tool_call_deltas=CALL),
        output(tool_call_deltas=REST, delta="Done."),
        output(finish_reason="tool_calls"),
    ]
    events = events_of(*outputs)
    assert contents(events) == [
        ["thinking", "Hm", "m.", "local"],
        ["text", "Let ", "me."],
        ["tool_use", '{"city": "Paris"}'],
        ["text", "Done."],
    ]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2,
        "output_tokens": 3,
    }


def test_a_call_that_was_cut() -> None:
    cut = output(tool_call_deltas=CALL, finish_reason="length", delta="Wait.")
    assert contents(events_of(cut)) == [
        ["text", "Wait."],
        ["tool_use", '{"INVALID_JSON": "{\\"city\\": "}'],
    ]
    call = ToolCall("weather", '{"city": ', "call_1")
    whole = output(tool_calls=(call,), finish_reason="length", text="Wait.", reasoning="Hm.")
    assert [block["type"] for block in replies.blocks(whole)] == ["thinking", "text", "tool_use"]
    assert replies.blocks(whole)[2]["input"] == {"INVALID_JSON": '{"city": '}


def test_eager_tools_are_told_as_they_are_written() -> None:
    tools = [{**TOOLS[0], "eager_input_streaming": True}]
    outputs = [output(tool_call_deltas=CALL), output(tool_call_deltas=REST, finish_reason="stop")]
    assert contents(events_of(*outputs, tools=tools)) == [["tool_use", '{"city": ', '"Paris"}']]


def test_an_error_in_the_middle() -> None:
    events = events_of(output(delta="a"), error=ApiError("internal", "It broke."))
    assert events[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "It broke."},
        "request_id": "r",
    }
    assert all(e["type"] != "message_stop" for e in events)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"finish_reason": "stop"}, ("end_turn", None)),
        ({"finish_reason": "stop", "stop_text": "x"}, ("stop_sequence", "x")),
        ({"finish_reason": "tool_calls"}, ("tool_use", None)),
        ({"finish_reason": "length"}, ("max_tokens", None)),
        ({"finish_reason": "repetition"}, ("max_tokens", None)),
        ({"finish_reason": "aborted"}, ("end_turn", None)),
        (
            {"finish_reason": "length", "usage": Usage(7, 2)},
            ("model_context_window_exceeded", None),
        ),
    ],
)
def test_why_it_ended(values: dict[str, Any], told: tuple[str, str | None]) -> None:
    found = replies.stop(output(**values), 3)
    assert (found["stop_reason"], found["stop_sequence"]) == told
