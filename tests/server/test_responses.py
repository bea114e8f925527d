"""OpenAI's own client and the Responses API of a real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any, cast

import anyio
import httpx
import openai
import pytest

from glimmer.chat import ToolArgumentsDelta, ToolCall, ToolCallEnd, ToolCallStart
from glimmer.outputs import RequestOutput, Timing, Usage
from glimmer.server.errors import ApiError
from glimmer.server.openai import response_items, responses
from glimmer.server.run import Server

QUESTION = "What is the weather in Paris?"
TOOLS: list[Any] = [
    {
        "type": "function",
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "北京"]}},
            "required": ["city"],
        },
        "strict": True,
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


def last_response(events: Any) -> Any:
    """That of the event which ends a stream."""
    found = [e for e in events if e.type in ("response.completed", "response.incomplete")]
    assert len(found) == 1
    return found[0].response


def without_ids(response: Any) -> list[Any]:
    items = [item.to_dict() for item in response.output]
    # What the client has parsed for itself is no part of it either.
    left_out = ("id", "call_id", "parsed_arguments")
    return [{k: v for k, v in item.items() if k not in left_out} for item in items]


@pytest.mark.parametrize("model", ["glm-4", "glm-4.5", "plain"])
def test_a_response_and_its_stream_say_the_same(client: openai.OpenAI, model: str) -> None:
    values: dict[str, Any] = {
        "model": model,
        "input": QUESTION,
        "instructions": "Be brief.",
        "max_output_tokens": 24,
        "temperature": 0,
        "top_logprobs": 2,
        "metadata": {"mine": "yes"},
    }
    whole = client.responses.create(**values)
    assert whole.object == "response"
    assert whole.id.startswith("resp_")
    assert whole.metadata == {"mine": "yes"}
    assert (whole.model, whole.instructions) == (model, "Be brief.")
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    assert whole.usage.output_tokens_details.reasoning_tokens == 0
    if whole.status == "incomplete":
        assert whole.incomplete_details is not None
        assert whole.incomplete_details.reason == "max_output_tokens"
    else:
        assert whole.status == "completed"
    with client.responses.stream(**values) as stream:
        events = list(stream)
    assert [e.type for e in events[:2]] == ["response.created", "response.in_progress"]
    assert [e.sequence_number for e in events] == list(range(len(events)))
    told = last_response(events)
    assert without_ids(told) == without_ids(whole)
    assert told.output_text == whole.output_text
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        whole.output_text
    )
    assert told.usage.output_tokens == whole.usage.output_tokens


def test_logprobs(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {
        "model": "plain", "input": QUESTION, "max_output_tokens": 8, "temperature": 0,
        "include": ["message.output_text.logprobs"], "top_logprobs": 2,
    }  # fmt: skip
    (message,) = client.responses.create(**values).output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert len(part.logprobs) == 8
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_turns(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {"model": "glm-4", "max_output_tokens": 4, "temperature": 0}
    first = client.responses.create(**values, input=QUESTION)
    turns: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        *first.output,
        {"type": "message", "role": "user", "content": "And in 北京?"},
    ]
    second = client.responses.create(**values, input=turns)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens


@pytest.mark.parametrize("model", ["glm-4", "glm-4.5"])
def test_tools_there_and_back(client: openai.OpenAI, model: str) -> None:
    values: dict[str, Any] = {
        "model": model, "tools": TOOLS, "max_output_tokens": 400, "extra_body": {"seed": 3},
        "reasoning": {"effort": "none"}, "parallel_tool_calls": False,
    }  # fmt: skip
    for choice in ("required", {"type": "function", "name": "weather"}):
        answer = client.responses.create(**values, input=QUESTION, tool_choice=cast("Any", choice))
        assert answer.status == "completed"
        call = answer.output[-1]
        assert call.type == "function_call"
        assert call.name == "weather"
        assert json.loads(call.arguments)["city"] in ("Paris", "北京")
        assert answer.tools[0].to_dict()["name"] == "weather"
        with client.responses.stream(
            **values, input=QUESTION, tool_choice=cast("Any", choice)
        ) as stream:
            pieces = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
            final = stream.get_final_response()
        assert without_ids(final) == without_ids(answer)
        assert "".join(pieces) == call.arguments
    turns: list[Any] = [
        {"role": "user", "content": QUESTION},
        *answer.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    after = client.responses.create(
        **{**values, "max_output_tokens": 8}, input=turns, tool_choice="none"
    )
    assert answer.usage is not None
    assert after.usage is not None
    assert after.usage.output_tokens > 0


def test_forms(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {"model": "plain", "input": QUESTION, "max_output_tokens": 200}
    form = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
    response = client.responses.create(**values, text=cast("Any", {"format": form}))
    answer = json.loads(response.output_text)
    assert set(answer) == {"yes", "size"}
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.to_dict() == form
    with client.responses.stream(**values, text=cast("Any", {"format": form})) as stream:
        assert set(json.loads(stream.get_final_response().output_text)) == {"yes", "size"}


def test_thoughts_are_asked_for_or_not(client: openai.OpenAI) -> None:
    counts = {}
    for effort in ("none", "high", None):
        usage = client.responses.create(
            model="glm-4.5", input=QUESTION, max_output_tokens=1, reasoning={"effort": effort}
        ).usage
        assert usage is not None
        counts[effort] = usage.input_tokens
    assert counts["none"] > counts["high"] == counts[None]


@pytest.mark.parametrize(
    ("values", "error", "part"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "There is no model called 'gpt-5' here"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"input": []}, openai.BadRequestError, "input"),
        ({"input": [{"role": "king", "content": ""}]}, openai.BadRequestError, "role must be"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, openai.BadRequestError, "keeps none"),
        ({"input": [{"type": "zap"}]}, openai.BadRequestError, "an item must be a message"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            openai.BadRequestError,
            "text only",
        ),
        (
            {"input": [{"type": "function_call", "name": "a"}]},
            openai.BadRequestError,
            "call_id must be text",
        ),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, "is of type 'web_search'"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "has no name"),
        ({"tool_choice": "required"}, openai.BadRequestError, "no tools are offered"),
        ({"tool_choice": {"type": "mcp"}}, openai.BadRequestError, "its type is 'mcp'"),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "keeps nothing"),
        ({"conversation": "c"}, openai.BadRequestError, "conversation is not offered"),
        ({"background": True}, openai.BadRequestError, "background is not offered"),
        ({"truncation": "auto"}, openai.BadRequestError, "truncation must be disabled"),
        ({"text": {"format": {"type": "json_schema"}}}, openai.BadRequestError, "needs schema"),
        ({"extra_body": {"n": 2}}, openai.BadRequestError, "n"),
        ({"input": "a b " * 5000}, openai.BadRequestError, "the context holds 4096"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(
    client: openai.OpenAI, values: dict[str, Any], error: type[Exception], part: str, stream: bool
) -> None:
    given: dict[str, Any] = {"model": "plain", "input": QUESTION, "max_output_tokens": 4, **values}
    with pytest.raises(error, match=part):
        client.responses.create(**given, stream=stream)


def test_what_is_not_followed_is_said(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/v1/responses",
        json={
            "model": "plain",
            "input": QUESTION,
            "max_output_tokens": 1,
            "store": True,
            "zap": 1,
            "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
            "text": {"verbosity": "low"},
            "reasoning": {"summary": "auto"},
        },
        headers={"x-request-id": "mine-1"},
    )
    assert answer.status_code == 200
    assert answer.headers["x-glimmer-ignored"] == (
        "zap, store, include.reasoning.encrypted_content, text.verbosity, reasoning.summary"
    )
    assert answer.json()["store"] is False
    assert answer.json()["id"] == "resp_mine-1"


def test_a_thought_a_text_and_calls_are_one_turn() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": f"id_{name}", "name": name, "arguments": "{}"}

    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    summary = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm?"}]}
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]}
    result = {"type": "function_call_output", "call_id": "id_a", "output": "1"}
    empty = {"type": "reasoning", "summary": [], "encrypted_content": "zzz"}
    told = response_items.to_messages(
        [thought, said, call("a"), call("b"), result, summary, call("c"), empty, said, said]
    )
    calls = [[c["function"]["name"] for c in m.pop("tool_calls", ())] for m in told]
    assert calls == [["a", "b"], [], ["c"], [], []]
    assert told == [
        {"role": "assistant", "reasoning_content": "Hm.", "content": "Hi."},
        {"role": "tool", "tool_call_id": "id_a", "content": "1"},
        {"role": "assistant", "reasoning_content": "Hm?"},
        {"role": "assistant", "content": "Hi."},
        {"role": "assistant", "content": "Hi."},
    ]


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


def events_of(*outputs: RequestOutput, error: ApiError | None = None) -> list[Any]:
    class Stream:
        model = SimpleNamespace(model=SimpleNamespace(tokenizer=None))
        totals = SimpleNamespace(usage=Usage(7, 3, 2))

        async def __aiter__(self) -> AsyncIterator[RequestOutput]:
            for item in outputs:
                yield item
            if error is not None:
                raise error

    async def collect() -> list[Any]:
        events = responses._events(cast("Any", Stream()), {"id": "resp_r", "output": []}, "r")
        return [json.loads(e.decode().split("data: ", 1)[1]) async for e in events]

    return anyio.run(collect)


START = ToolCallStart(0, "call_1", "weather")
BEGIN, END = ToolArgumentsDelta(0, '{"city": '), ToolArgumentsDelta(0, '"Paris"}')


def test_items_come_one_after_the_other() -> None:
    call = ToolCall("weather", '{"city": "Paris"}', "call_1")
    events = events_of(
        output(reasoning_delta="Hm"),
        output(reasoning_delta="m.", delta="Let "),
        output(delta="me.", tool_call_deltas=(START, BEGIN)),
        output(tool_call_deltas=(END, ToolCallEnd(0)), finish_reason="tool_calls"),
    )
    kinds = [e["type"].removeprefix("response.") for e in events]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    whole = output(reasoning="Hmm.", text="Let me.", tool_calls=(call,), finish_reason="tool_calls")
    assert events[-1]["response"]["output"] == (
        response_items.output_items(whole, "r", "completed")
    )
    assert events[-1]["response"]["usage"]["input_tokens_details"]["cached_tokens"] == 2


def test_an_answer_that_was_cut() -> None:
    events = events_of(output(tool_call_deltas=(START, BEGIN), finish_reason="repetition"))
    response = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete"
    assert response["incomplete_details"]["stop_reason"] == "repetition"
    (item,) = response["output"]
    assert (item["status"], item["arguments"]) == ("incomplete", '{"city": ')


def test_an_answer_that_says_nothing() -> None:
    response = events_of(output(finish_reason="stop"))[-1]["response"]
    assert response["output"] == (
        response_items.output_items(output(finish_reason="stop"), "r", "completed")
    )
    assert response["output"][0]["content"][0]["text"] == ""


def test_an_error_in_the_middle() -> None:
    events = events_of(output(delta="a"), error=ApiError("internal", "It broke."))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "It broke."}
