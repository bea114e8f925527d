"""One request at backends that answer as a test has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from glimmer.engine import LoopLimits, Request, SamplingParams, StepOutput, TokenConstraint
from glimmer.errors import EngineUnavailableError, GenerationError
from glimmer.vllm.answering import Answering
from glimmer.vllm.backend import Backend, Served
from glimmer.vllm.backends import Backends

Answer = httpx.Response | httpx.HTTPError


def answer_of(
    *answers: Answer,
    limits: LoopLimits | None = None,
    form: TokenConstraint | None = None,
    num_backends: int = 1,
    **values: Any,
) -> tuple[list[StepOutput], int]:
    """What comes of a request with the prompt (5, 6), and the requests made for it."""
    left = list(answers)
    outputs: list[StepOutput] = []

    def handler(request: httpx.Request) -> httpx.Response:
        answer = left.pop(0)
        if isinstance(answer, httpx.HTTPError):
            answer.request = request
            raise answer
        return answer

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            backends = [Backend(f"http://there:{port}") for port in range(1, num_backends + 1)]
            for backend in backends:
                backend.served = Served("m", 100)
            params = SamplingParams(**values)
            request = Request(1, (5, 6), params, frozenset({9}), 0, loop_limits=limits)
            if form is not None:
                request = replace(request, make_constraint=lambda: form)
            answering = Answering(
                request,
                2 + params.max_new_tokens,
                Backends(backends, "m", client),
                client,
                emit=outputs.append,
                begun=lambda: None,
                retried=lambda: None,
            )
            await answering.run()
            assert not any(backend.num_running for backend in backends)

    asyncio.run(run())
    return outputs, len(answers) - len(left)


def events(*choices: dict[str, Any], end: str = "data: [DONE]\n\n") -> httpx.Response:
    told = [{"choices": [{"index": 0, "text": "", **choice}]} for choice in choices]
    return httpx.Response(200, text="".join(f"data: {json.dumps(t)}\n\n" for t in told) + end)


def told(outputs: list[StepOutput]) -> list[tuple[int | None, str | None]]:
    return [(output.token_id, output.finish_reason) for output in outputs]


WHOLE = ({"token_ids": [7]}, {"token_ids": [8, 9], "finish_reason": "stop"})


def test_tokens_come_with_the_reason_of_the_end() -> None:
    outputs, _ = answer_of(events(*WHOLE))
    assert told(outputs) == [(7, None), (8, None), (9, "stop")]
    outputs, _ = answer_of(events({"token_ids": [7, 8]}, {"token_ids": [4]}), max_new_tokens=3)
    assert told(outputs) == [(7, None), (8, None), (4, "length")]
    # What ends it here ends it, whatever else would come.
    outputs, _ = answer_of(events({"token_ids": [7, 9, 8, 8]}))
    assert told(outputs) == [(7, None), (9, "stop")]
    circle = LoopLimits(min_repeats=2, min_tokens=4)
    outputs, _ = answer_of(events({"token_ids": [7] * 20}), limits=circle)
    assert told(outputs)[-1] == (7, "repetition")


@pytest.mark.parametrize("text", ["a\u2028b", "\u2029", "\x85", "你\u2028"])
def test_a_text_may_hold_what_ends_a_line_elsewhere(text: str) -> None:
    """vLLM sends such characters as they are."""
    event = {"choices": [{"index": 0, "text": text, "token_ids": [9], "finish_reason": "stop"}]}
    told_raw = f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\ndata: [DONE]"
    for size in (1, 7, 10_000):  # however the bytes are cut

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            data = told_raw.encode()
            for at in range(0, len(data), size):
                yield data[at : at + size]

        outputs, _ = answer_of(httpx.Response(200, content=pieces()))
        assert told(outputs) == [(9, "stop")]


def test_a_connection_that_was_closed_meanwhile_is_replaced() -> None:
    for error in (httpx.ReadError(""), httpx.RemoteProtocolError(""), httpx.WriteError("")):
        outputs, count = answer_of(error, events(*WHOLE))
        assert told(outputs)[-1] == (9, "stop")
        assert count == 2
    outputs, count = answer_of(httpx.ReadError(""), httpx.ReadError(""))
    assert isinstance(outputs[-1].error, EngineUnavailableError)
    assert count == 2


def test_one_that_refuses_connections_is_not_asked_again() -> None:
    outputs, count = answer_of(httpx.ConnectError("refused"))
    assert isinstance(outputs[-1].error, EngineUnavailableError)
    assert count == 1


def test_what_breaks_two_is_given_to_no_third() -> None:
    """It may be the request itself; who only turns it away is passed over."""
    failure = httpx.Response(500, json={"error": {"message": "CUDA"}})
    outputs, count = answer_of(failure, failure, events(*WHOLE), num_backends=5)
    assert told(outputs) == [(None, "error")]
    assert count == 2
    busy, closed = httpx.Response(503), httpx.ConnectError("refused")
    outputs, count = answer_of(busy, closed, busy, failure, events(*WHOLE), num_backends=5)
    assert told(outputs)[-1] == (9, "stop")
    assert count == 5


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_stands_before_it_may_tell_that_it_is_away(status: int) -> None:
    outputs, _ = answer_of(httpx.Response(status))
    assert isinstance(outputs[-1].error, EngineUnavailableError)


class AfterSeven:
    """A form that begins behind a thought, which ends with the token 7."""

    is_finished = has_begun = False

    def accept(self, token_id: int) -> None:
        self.has_begun |= token_id == 7

    def forced(self) -> list[int]:
        return []

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        return len(token_ids)

    def fill(self, drafts: Sequence[int], masks: Any) -> None:
        raise NotImplementedError


def usage(num_cached: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens_details": {"cached_tokens": num_cached}}}


def test_cached_tokens_are_the_prompts() -> None:
    """Behind a thought the server finds the thought too, which it has made itself."""

    def with_usage(*choices: dict[str, Any]) -> httpx.Response:
        told = {"choices": [], **usage(96)}
        return events(*choices, end=f"data: {json.dumps(told)}\n\ndata: [DONE]\n\n")

    outputs, _ = answer_of(with_usage(*WHOLE))
    assert [output.num_cached_tokens for output in outputs] == [0, 0, 96]
    thought = with_usage({"token_ids": [4, 7, 8]})
    outputs, count = answer_of(
        thought, with_usage({"token_ids": [8]}, {"token_ids": [9], "finish_reason": "stop"}),
        form=AfterSeven(), logit_bias={},
    )  # fmt: skip
    assert count == 2
    assert told(outputs) == [(4, None), (7, None), (8, None), (9, "stop")]
    assert outputs[-1].num_cached_tokens == 0


def test_an_answer_is_whole_with_its_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of what follows."""
    monkeypatch.setattr("glimmer.vllm.answering._END_S", 0.05)
    whole = events(*WHOLE, end="").content

    async def silent() -> AsyncIterator[bytes]:
        yield whole
        await asyncio.sleep(60)

    async def broken() -> AsyncIterator[bytes]:
        yield whole
        raise httpx.ReadError("gone")

    for end in (silent, broken):
        outputs, _ = answer_of(httpx.Response(200, content=end()))
        assert told(outputs) == [(7, None), (8, None), (9, "stop")]


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (events({"token_ids": [7]}, end=""), "broke off"),
        (events({"token_ids": [7]}, {"token_ids": [], "finish_reason": "abort"}), "abort"),
        (events({"token_ids": [7], "finish_reason": "abort"}), "abort"),
        (events({"text": "no ids"}), "no answer of vLLM"),
    ],
)
def test_an_end_that_is_none_is_an_error(answer: httpx.Response, part: str) -> None:
    outputs, _ = answer_of(answer)
    assert outputs[-1].finish_reason == "error"
    assert isinstance(outputs[-1].error, GenerationError)
    assert part in str(outputs[-1].error)


def test_a_mistake_of_ours_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a mistake")

    made: Callable[..., None] = fail
    monkeypatch.setattr("glimmer.vllm.answering.completion_body", made)
    outputs, _ = answer_of(events(*WHOLE))
    assert isinstance(outputs[-1].error, GenerationError)
    assert "a mistake" not in str(outputs[-1].error)
