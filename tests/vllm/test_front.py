"""A front before several servers: the same tokens, and what it does when one of them fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import glimmer
from glimmer.engine import BackendStats
from glimmer.errors import InvalidParameterError
from glimmer.server.run import Server
from tests.support.fake_vllm import FakeVllm, running_fake
from tests.support.server import running

URL = "/v1/chat/completions"
CHAT: dict[str, Any] = {
    "model": "glm-4",
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "max_tokens": 12,
    "temperature": 0,
    "ignore_eos": True,
    "loop_guard": False,
}


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glimmer.vllm.engine.HEALTH_S", 0.1)


@pytest.fixture
def pair(engines: dict[str, glimmer.AsyncLLM]) -> Iterator[list[FakeVllm]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(running_fake(FakeVllm(engines["glm-4"], "glm-4"))) for _ in range(2)
        ]


@contextmanager
def front(
    folders: dict[str, Path], fakes: list[FakeVllm], *, wait: bool = True, **values: Any
) -> Iterator[Server]:
    model = {
        "name": "glm-4",
        "source": str(folders["glm-4"]),
        "family": "glm4",
        "backends": [fake.url for fake in fakes],
    }
    with running({**model, **values}, wait=wait) as server:
        yield server


def stats(server: Server) -> tuple[BackendStats, ...]:
    return server.service.pool.loaded()["glm-4"].stats.backends


def until(condition: Any) -> None:
    while not condition():
        time.sleep(0.01)


def ask(server: Server, **values: Any) -> httpx.Response:
    return httpx.post(server.url + URL, json={**CHAT, **values}, timeout=60)


def streamed(server: Server, **values: Any) -> list[str]:
    """The lines of data."""
    with httpx.stream(
        "POST", server.url + URL, json={**CHAT, "stream": True, **values}, timeout=60
    ) as answer:
        assert answer.status_code == 200
        return [line for line in answer.iter_lines() if line.startswith("data:")]


@pytest.mark.parametrize("values", [{}, {"temperature": 0.9, "seed": 4, "top_p": 0.95}])
def test_tokens_are_those_of_the_engine_behind(
    server: Server, engines: dict[str, glimmer.AsyncLLM], values: dict[str, Any]
) -> None:
    assert ask(server).status_code == 200  # so that it is connected
    remote = server.service.pool.loaded()["glm-4"]
    params = glimmer.SamplingParams(max_new_tokens=20, **{"temperature": 0.0, **values}, logprobs=3)

    async def both() -> list[glimmer.RequestOutput]:
        return [await found.chat(CHAT["messages"], params) for found in (remote, engines["glm-4"])]

    ours, theirs = asyncio.run(both())
    assert ours.token_ids == theirs.token_ids
    assert ours.text == theirs.text
    assert ours.finish_reason == theirs.finish_reason
    assert ours.logprobs == theirs.logprobs


def test_a_thought_goes_before_the_form(
    engines: dict[str, glimmer.AsyncLLM], folders: dict[str, Path]
) -> None:
    fake = FakeVllm(engines["glm-4.5"], "glm-4.5")
    end = engines["glm-4.5"].model.thought_end(True)
    assert end is not None
    (end_id,) = engines["glm-4.5"].model.tokenizer.encode(end, True)
    params = glimmer.SamplingParams(
        temperature=0,
        max_new_tokens=60,
        logit_bias={end_id: 100},  # noise would go on thinking
        constraint=glimmer.Constraint.choice(["ja", "nein"]),
    )
    model = {"name": "glm-4.5", "source": str(folders["glm-4.5"]), "family": "glm45"}
    with running_fake(fake), running({**model, "backends": [fake.url]}) as server:
        remote = server.service.pool.loaded()["glm-4.5"]

        async def both() -> list[glimmer.RequestOutput]:
            return [
                await llm.chat(CHAT["messages"], params, thinking=True)
                for llm in (remote, engines["glm-4.5"])
            ]

        ours, theirs = asyncio.run(both())
    assert ours.text.strip() in ("ja", "nein")
    assert ours.token_ids == theirs.token_ids
    thought, form = fake.bodies
    assert "structured_outputs" not in thought
    assert form["prompt"] == [*thought["prompt"], end_id]
    assert "structured_outputs" in form


def test_requests_go_to_who_has_the_fewest(folders: dict[str, Path], pair: list[FakeVllm]) -> None:
    for fake in pair:
        fake.pause_s = 0.02
    with front(folders, pair) as server, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(server), range(6)))
        assert [answer.status_code for answer in answers] == [200] * 6
        assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    assert [len(fake.bodies) for fake in pair] == [3, 3]


@pytest.mark.parametrize("failure", ["status", "break_after", "stream_error", "connection"])
def test_before_the_first_token_another_one_does_it(
    folders: dict[str, Path], engines: dict[str, glimmer.AsyncLLM], failure: str
) -> None:
    good = FakeVllm(engines["glm-4"], "glm-4")
    bad = FakeVllm(engines["glm-4"], "glm-4")
    with running_fake(good), ExitStack() as stack:
        stack.enter_context(running_fake(bad))
        with front(folders, [bad, good]) as server:
            until(lambda: all(b.is_up for b in stats(server)))
            expected = ask(server).json()["choices"]
            until(lambda: not any(b.num_running for b in stats(server)))
            good.bodies.clear()
            if failure == "connection":
                stack.close()
            else:
                values = {"status": 503, "break_after": 0, "stream_error": 500}
                setattr(bad, failure, values[failure])
            for _ in range(2):
                assert ask(server).json()["choices"] == expected
                assert streamed(server)[-1] == "data: [DONE]"
            assert len(good.bodies) == 4
            told = httpx.get(f"{server.url}/metrics").text
            assert 'glimmer:backend_retries_total{model_name="glm-4"}' in told
            # One that is gone altogether, the health checks may have found first.
            retries = server.service.pool.loaded()["glm-4"].stats.num_retries
            assert retries > 0 or failure == "connection"


def test_after_the_first_token_the_answer_has_failed(
    folders: dict[str, Path], pair: list[FakeVllm]
) -> None:
    with front(folders, pair) as server:
        for fake in pair:
            fake.break_after, fake.pause_s = 3, 0.03
        answer = ask(server)
        assert answer.status_code == 500
        assert "broke off in the middle" in answer.json()["error"]["message"]
        lines = streamed(server)
        assert sum('"content":' in line for line in lines) > 0
        assert "broke off in the middle" in lines[-1] + lines[-2]
        for fake in pair:
            fake.break_after = None
        assert ask(server).status_code == 200
        (row,) = server.service.access.ledger.usage(["model"])
        assert (row.requests, row.errors) == (3, 2)
        # Of the answers that failed, what had come of them: at most 3 tokens each.
        assert 12 < row.completion_tokens <= 3 + 3 + 12


def test_with_none_left_it_is_unavailable_in_every_dialect(
    folders: dict[str, Path], pair: list[FakeVllm]
) -> None:
    with front(folders, pair) as server:
        assert ask(server).status_code == 200
        for fake in pair:
            fake.status = 503  # noticed by the request itself
        for values in ({}, {"stream": True}):
            answer = ask(server, **values)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "model_unavailable"
            assert answer.headers["retry-after"] == "5"
        for fake in pair:
            fake.status, fake.is_healthy = None, False  # and by the health checks
        until(lambda: not any(b.is_up for b in stats(server)))
        assert ask(server).status_code == 503
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200
        message = {"model": "glm-4", "messages": CHAT["messages"], "max_tokens": 4}
        anthropic = httpx.post(f"{server.url}/v1/messages", json=message)
        assert anthropic.status_code == 529
        assert anthropic.json()["error"]["type"] == "overloaded_error"
        platform = httpx.post(f"{server.url}/api/paas/v4/chat/completions", json=message)
        assert platform.status_code == 503
        assert platform.json()["error"]["code"] == "1305"
        told = httpx.get(f"{server.url}/metrics").text
        name = pair[0].url.removeprefix("http://")
        assert f'glimmer:backend_up{{backend="{name}",model_name="glm-4"}} 0.0' in told
        pair[1].is_healthy = True
        until(lambda: any(b.is_up for b in stats(server)))
        assert ask(server).status_code == 200
        assert httpx.get(f"{server.url}/ready").status_code == 200


def test_a_client_that_goes_away_ends_its_request_there(
    folders: dict[str, Path], pair: list[FakeVllm]
) -> None:
    values = {**CHAT, "max_tokens": 2000, "stream": True}
    pair[0].pause_s = 0.01
    with front(folders, pair[:1]) as server:
        with httpx.stream("POST", server.url + URL, json=values, timeout=60) as answer:
            lines = answer.iter_lines()  # which closes the connection when it is let go
            assert any('"content":' in line for line in lines)
            assert pair[0].num_ended == 0
        until(lambda: pair[0].num_ended == 1)
        until(lambda: not stats(server)[0].num_running)
        assert server.service.pool.loaded()["glm-4"].stats.num_running == 0


def test_a_storm_of_disconnects_leaves_nothing_behind(
    folders: dict[str, Path], pair: list[FakeVllm]
) -> None:
    values = {**CHAT, "max_tokens": 2000, "stream": True}

    async def one(client: httpx.AsyncClient, number: int) -> None:
        async with client.stream("POST", URL, json=values) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            for _ in range(number % 4):
                await anext(lines)

    async def storm(url: str) -> None:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(one(client, number) for number in range(40)))

    with front(folders, pair) as server:
        asyncio.run(storm(server.url))
        until(lambda: not any(b.num_running for b in stats(server)))
        until(lambda: all(fake.num_ended == len(fake.bodies) for fake in pair))
        engine = server.service.pool.loaded()["glm-4"].stats
        assert (engine.num_running, engine.num_waiting) == (0, 0)
        assert ask(server).status_code == 200


def test_a_stop_string_ends_the_request_there(
    folders: dict[str, Path], pair: list[FakeVllm]
) -> None:
    with front(folders, pair[:1]) as server:
        text = ask(server).json()["choices"][0]["message"]["content"]
        until(lambda: pair[0].num_ended == 1)
        pair[0].pause_s = 0.01
        answer = ask(server, max_tokens=2000, stop=[text[2:5]]).json()["choices"][0]
        assert answer["message"]["content"] == text[: text.index(text[2:5])]
        assert answer["finish_reason"] == "stop"
        until(lambda: pair[0].num_ended == 2)


def test_one_that_hangs_is_left(folders: dict[str, Path], pair: list[FakeVllm]) -> None:
    """No connection breaks where a machine is cut off: its health tells."""
    pair[0].hang_after = 2
    with front(folders, pair[:1]) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server)
        until(lambda: pair[0].bodies)
        time.sleep(0.2)
        assert not asked.done()
        pair[0].is_healthy = False
        assert asked.result().status_code == 500
        pair[0].hang_after, pair[0].is_healthy = None, True
        until(lambda: stats(server)[0].is_up)
        assert ask(server).status_code == 200


def test_an_engine_that_fails_at_a_request_keeps_the_others(
    folders: dict[str, Path], pair: list[FakeVllm]
) -> None:
    with front(folders, pair) as server:
        for fake in pair:
            fake.status = 500
        answer = ask(server)
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "The engine has failed at this request."
        assert all(b.is_up for b in stats(server))
        pair[0].status = pair[1].status = 400
        answer = ask(server)
        assert answer.status_code == 400
        assert "refuses this request: made to answer 400" in answer.json()["error"]["message"]
        assert ask(server, stream=True).status_code == 400
        for fake in pair:
            fake.status, fake.stream_error = None, 400  # it was too late for a status
        assert ask(server).status_code == 400
        for fake in pair:
            fake.hang_after = 0
        body = {**CHAT, "stream": True}
        with httpx.stream("POST", server.url + URL, json=body, timeout=60) as late:
            assert late.status_code == 200
            for fake in pair:
                fake.hang_after = None
            assert "refuses this request: made to fail" in "".join(late.iter_lines())


@pytest.mark.parametrize("status", [401, 403, 404])
def test_one_request_that_is_refused_ends_no_other(
    folders: dict[str, Path], pair: list[FakeVllm], status: int
) -> None:
    pair[0].pause_s = 0.02
    with front(folders, pair[:1]) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server, max_tokens=40)
        until(lambda: pair[0].bodies)
        pair[0].status = status
        assert ask(server).status_code == 503
        pair[0].status = None
        assert asked.result().status_code == 200
        until(lambda: stats(server)[0].is_up)
        assert ask(server).status_code == 200


def test_a_mistake_of_ours_does_not_end_the_health_checks(
    folders: dict[str, Path], pair: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[None] = []

    async def fail(*_: object) -> None:
        failures.append(None)
        raise KeyError("a mistake")

    with front(folders, pair[:1]) as server:
        with monkeypatch.context() as patch:
            patch.setattr("glimmer.vllm.backend.Backend.check", fail)
            until(lambda: len(failures) > 1)
        pair[0].is_healthy = False
        until(lambda: not stats(server)[0].is_up)


def test_too_many_at_once_are_refused(folders: dict[str, Path], pair: list[FakeVllm]) -> None:
    pair[0].hang_after = 1
    few = {"max_num_seqs": 1, "max_waiting": 1}
    with front(folders, pair[:1], **few) as server, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, server) for _ in range(2)]
        until(lambda: stats(server)[0].num_running == 2)
        assert ask(server).status_code == 429
        pair[0].hang_after = None
        assert [a.result().status_code for a in asked] == [200, 200]


def test_keys_come_from_the_environment(
    folders: dict[str, Path], pair: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair[0].key, pair[1].key = "first", "second"
    monkeypatch.setenv("GLIMMER_BACKEND_API_KEY", "first")
    monkeypatch.setenv("OTHER", "second")
    backends = [pair[0].url, {"url": pair[1].url + "/v1", "key_env": "OTHER"}]
    with front(folders, [], backends=backends) as server:
        until(lambda: all(b.is_up for b in stats(server)))
        for _ in range(2):
            assert ask(server).status_code == 200
    assert [len(fake.bodies) for fake in pair] == [1, 1]


def test_a_backend_stands_there_once(folders: dict[str, Path], pair: list[FakeVllm]) -> None:
    """Its line in the metrics is its own."""
    backends = [pair[0].url, pair[0].url + "/v1/"]
    with (
        pytest.raises(InvalidParameterError, match=r"the backend 127\.0\.0\.1:\d+ is named twice"),
        front(folders, [], backends=backends),
    ):
        pass


def test_a_front_needs_no_weights(
    folders: dict[str, Path], pair: list[FakeVllm], tmp_path: Path
) -> None:
    for file in folders["glm-4"].iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with front(folders, pair[:1]) as whole, front({"glm-4": tmp_path}, pair[1:]) as light:
        first, second = (ask(server).json()["choices"] for server in (whole, light))
    assert first == second
    assert [len(fake.bodies) for fake in pair] == [1, 1]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"key": "unknown"}, "API key is missing or wrong"),
        ({"is_healthy": False}, "says of its health: 503"),
    ],
)
def test_a_server_that_cannot_be_used_is_told_at_the_start(
    folders: dict[str, Path],
    pair: list[FakeVllm],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    part: str,
) -> None:
    monkeypatch.setattr("glimmer.server.engines._BACKENDS_S", 0.2)
    for name, value in change.items():
        setattr(pair[0], name, value)
    with front(folders, pair[:1], wait=False) as server:
        until(lambda: server.service.failure is not None)
        assert part in str(server.service.failure)


def test_the_context_is_the_shorter_of_both(folders: dict[str, Path], pair: list[FakeVllm]) -> None:
    with front(folders, pair[:1], max_model_len=64) as server:
        told = httpx.get(f"{server.url}/v1/models/glm-4").json()
        assert told["max_model_len"] == 64
        answer = ask(server, messages=[{"role": "user", "content": "a b " * 60}])
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert not pair[0].bodies
        answer = ask(server, max_tokens=1000).json()
        assert answer["usage"]["total_tokens"] == 64
        assert answer["choices"][0]["finish_reason"] == "length"
