"""What a server does whatever is asked of it: it lives on, and answers or refuses everybody."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from glimmer.errors import InvalidParameterError
from glimmer.server.run import Server
from tests.support.server import running

CHAT = {"model": "plain", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
LONG = {**CHAT, "max_tokens": 4000, "ignore_eos": True, "loop_guard": False}
URL = "/v1/chat/completions"


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as found:
        yield found


def settled(server: Server) -> None:
    """Wait until the engines do nothing; all blocks are free then."""
    for llm in server.service.pool.loaded().values():
        while (stats := llm.stats).num_running or stats.num_waiting:
            time.sleep(0.01)
        assert stats.num_free_blocks == stats.num_blocks


def test_health_version_and_documents(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").status_code == 200
    assert re.match(r"\d+\.\d+", http.get("/version").json()["version"])
    paths = http.get("/openapi.json").json()["paths"]
    assert {URL, "/v1/models", "/api/paas/v4/chat/completions"} <= set(paths)
    page = http.get("/docs").text
    assert "https://" not in page, "nothing is fetched from elsewhere"
    for found in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert http.get(found).status_code == 200


def test_metrics_have_vllms_names(http: httpx.Client) -> None:
    assert http.post(URL, json=CHAT).status_code == 200
    told = http.get("/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc",
        "prompt_tokens_total", "generation_tokens_total", "request_success_total",
        "time_to_first_token_seconds_bucket", "e2e_request_latency_seconds_bucket",
        "prefix_cache_queries_total", "prefix_cache_hits_total", "num_preemptions_total",
    ):  # fmt: skip
        assert re.search(rf'^glimmer:{name}{{.*model_name="plain".*}} ', told, re.MULTILINE), name
    assert f'endpoint="{URL}",status="200"' in told


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        (b"", 400, "body"),
        (b"{", 400, "is no JSON"),
        (b"[]", 400, "body"),
        (b'{"model": "\xff"}', 400, "must be UTF-8"),
        (b'{"model": "\\ud800"}', 400, "surrogate"),
        (b'{"messages": [{"role": "user", "content": "\\udfff"}]}', 400, "surrogate"),
        (b'{"temperature": NaN}', 400, "NaN"),
        (b'{"tools": [{"a": -1e999}]}', 400, "too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400, "too long"),
        (b"[" * 100_000, 400, "no JSON|levels"),
        (b'{"messages": ' + b"[" * 90 + b"]" * 90 + b"}", 400, "64 levels"),
        (b'{"messages": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, 400, "levels"),
        (b'{"model": "plain", "messages": "' + b"a" * (17 << 20) + b'"}', 413, "may have 16777216"),
        (b'{"model": "plain", "messages": [{"role": "user", "content": "' + b"a " * (5 << 20)
         + b'"}]}', 400, "more than the context holds"),
    ],
)  # fmt: skip
def test_bodies_that_are_refused(http: httpx.Client, body: bytes, status: int, part: str) -> None:
    answer = http.post(URL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert re.search(part, answer.json()["error"]["message"])
    assert http.get("/health").status_code == 200


def test_a_body_without_a_length_is_limited_too(http: httpx.Client) -> None:
    pieces = (b"x" * (1 << 20) for _ in range(20))
    answer = http.post(URL, content=pieces, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_routes_that_are_not_there(http: httpx.Client) -> None:
    assert http.get("/nowhere").json()["error"]["message"] == "There is nothing at this address."
    assert http.get(URL).status_code == 405


def test_a_client_that_goes_away_ends_its_request(server: Server, http: httpx.Client) -> None:
    assert http.post(URL, json=CHAT).status_code == 200  # so that the model is loaded
    llm = server.service.pool.loaded()["plain"]
    with http.stream("POST", URL, json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert llm.stats.num_running == 1
    settled(server)
    # Not streamed: the connection is cut while the answer is made.
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(LONG).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        while not llm.stats.num_running:
            time.sleep(0.001)
    settled(server)
    # The last of it is written when the engine has long been free.
    while f'endpoint="{URL}",status="499"' not in (told := http.get("/metrics").text):
        time.sleep(0.01)
    assert re.search(r'request_success_total{.*finished_reason="aborted".*} ', told)
    assert 'status="500"' not in told


def test_a_storm_of_disconnects(server: Server) -> None:
    async def one(client: httpx.AsyncClient, number: int) -> None:
        async with client.stream("POST", URL, json={**LONG, "stream": True}) as answer:
            assert answer.status_code == 200
            if number % 3:
                async for _ in answer.aiter_lines():
                    break

    async def storm() -> None:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(one(client, n) for n in range(100)))

    asyncio.run(storm())
    settled(server)
    assert httpx.post(server.url + URL, json=CHAT).status_code == 200


def test_a_thousand_requests_at_once_are_answered_or_refused(models: list[dict[str, Any]]) -> None:
    small = {**models[2], "max_num_seqs": 4, "max_waiting": 50}
    body = json.dumps(CHAT).encode()
    head = f"POST {URL} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with running(small) as server:
        host, port = server.url.removeprefix("http://").split(":")

        async def one() -> int:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + body)
            answer = (await reader.read()).decode()
            writer.close()
            await writer.wait_closed()
            status = int(answer[9:12])
            if status == 429:
                assert '"code":"queue_full"' in answer
                assert "retry-after: 2" in answer
            return status

        async def all_at_once() -> list[int]:
            return await asyncio.gather(*(one() for _ in range(1000)))

        statuses = asyncio.run(all_at_once())
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) >= 50
        settled(server)
        assert httpx.post(server.url + URL, json=CHAT).status_code == 200


def test_slow_and_half_open_clients_are_left(models: list[dict[str, Any]]) -> None:
    with running(models[2], stall_s=0.3, keep_alive_s=0.1) as server:
        host, port = server.url.removeprefix("http://").split(":")
        # One that never ends its body is told so.
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        # One that reads nothing of its stream loses it.
        llm = server.service.pool.loaded()["plain"]
        body = json.dumps({**LONG, "stream": True, "logprobs": True, "top_logprobs": 20}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            while not llm.stats.num_running:
                time.sleep(0.001)
            while llm.stats.num_running:
                time.sleep(0.01)
        settled(server)


def test_a_stream_without_news_is_kept_alive(server: Server, models: list[dict[str, Any]]) -> None:
    with (
        running({**models[2], "max_num_seqs": 1}, keep_alive_s=0.05) as own,
        httpx.Client(base_url=own.url, timeout=60) as http,
    ):
        llm = own.service.pool.loaded()["plain"]
        with http.stream("POST", URL, json={**LONG, "stream": True}) as first:
            lines_of_first = first.iter_lines()
            next(lines_of_first)
            with http.stream("POST", URL, json={**CHAT, "stream": True}) as second:
                lines = second.iter_lines()
                assert llm.stats.num_waiting == 1
                assert next(lines) == ": keep-alive"
                first.close()
                assert [*lines][-2] == "data: [DONE]"


def test_one_request_that_fails_leaves_the_others(
    server: Server, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glimmer.errors import GenerationError
    from glimmer.server import jobs

    async def fail(*_: object) -> None:
        raise GenerationError("The weights are damaged.")

    monkeypatch.setattr(jobs, "complete", fail)
    answer = http.post(URL, json=CHAT)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "The weights are damaged."


def test_mistakes_of_ours_are_answered_and_logged_without_text(
    server: Server, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glimmer.server import jobs

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("glimmer.server")
    logger.addHandler(handler)

    said = "a secret of the client"

    async def fail(*_: object) -> None:
        raise KeyError(said)

    try:
        monkeypatch.setattr(jobs, "complete", fail)
        answer = http.post(URL, json=CHAT)
        while not any("KeyError in request" in line for line in lines):
            time.sleep(0.01)  # it is written after the answer
    finally:
        logger.removeHandler(handler)
    assert answer.status_code == 500
    assert "its log says more" in answer.json()["error"]["message"]
    assert "secret" not in answer.text + "".join(lines)


def test_an_address_that_others_reach_needs_a_key(models: list[dict[str, Any]]) -> None:
    with (
        pytest.raises(InvalidParameterError, match="asks for no key"),
        running(models[2], host="0.0.0.0"),
    ):
        pass
    with running(models[2], host="0.0.0.0", open_to_network=True):
        pass


def test_a_port_that_is_taken(server: Server, models: list[dict[str, Any]]) -> None:
    port = int(server.url.rpartition(":")[2])
    with (
        pytest.raises(InvalidParameterError, match="cannot be used"),
        running(models[2], port=port),
    ):
        pass


def test_requests_are_told_to_come_again_while_a_model_loads(
    models: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glimmer.server import models as pool

    gate = threading.Event()
    real = pool.open_llm

    def slow(*values: Any) -> Any:
        gate.wait()
        return real(*values)

    monkeypatch.setattr(pool, "open_llm", slow)
    with running(models[2], wait=False) as server:
        try:
            answer = httpx.get(f"{server.url}/health")
            assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
            answer = httpx.post(server.url + URL, json=CHAT)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
            assert answer.json()["error"]["code"] == "model_loading"
        finally:
            gate.set()


def test_one_model_stays_within_the_memory_too(models: list[dict[str, Any]]) -> None:
    one = {name: value for name, value in models[2].items() if name != "kv_memory"}
    with running({**one, "max_num_seqs": 4000}, memory="300MiB") as server:
        (llm,) = server.service.pool.loaded().values()
        assert llm.memory_bytes < 300 << 20
    with running(one, memory="1MiB", wait=False) as server:
        while server.service.failure is None:
            time.sleep(0.01)
        assert "may take 1 MiB. Allow more with --memory" in str(server.service.failure)


def test_models_take_turns_within_the_memory(models: list[dict[str, Any]]) -> None:
    with (
        running(*models, memory="65MiB") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        pool = server.service.pool
        assert set(pool.loaded()) == {"glm-4"}
        for name in ("plain", "glm-4.5", "glm-4"):
            assert http.post(URL, json={**CHAT, "model": name}).status_code == 200
            assert set(pool.loaded()) == {name}
        with http.stream("POST", URL, json={**LONG, "model": "glm-4", "stream": True}) as busy:
            lines = busy.iter_lines()
            next(lines)
            answer = http.post(URL, json=CHAT)
            assert answer.status_code == 503
            assert "no room for the model 'plain'" in answer.json()["error"]["message"]
        settled(server)


def test_a_model_that_loads_when_its_client_goes_away_is_kept(
    models: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glimmer.server import models as pool

    gate, begun = threading.Event(), threading.Event()
    opened: list[Any] = []
    real = pool.open_llm

    def slow(*values: Any) -> Any:
        begun.set()
        gate.wait(10)
        opened.append(real(*values))
        return opened[-1]

    with running(models[2], {**models[0], "name": "other"}, memory="1GiB") as server:
        monkeypatch.setattr(pool, "open_llm", slow)
        body = json.dumps({**CHAT, "model": "other"}).encode()
        host, port = server.url.removeprefix("http://").split(":")
        head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            assert begun.wait(10)
        slot = server.service.pool._slots["other"]
        while slot.num_users:
            time.sleep(0.001)
        gate.set()
        assert httpx.post(server.url + URL, content=body, headers={
            "content-type": "application/json"}, timeout=60).status_code == 200  # fmt: skip
        assert len(opened) == 1
        assert slot.llm is opened[0]


@pytest.mark.parametrize(
    "values",
    [
        {"messages": [1] * 100_000},
        {"logit_bias": {str(n): "x" for n in range(100_000)}},
        {"stop": [1] * 100_000},
    ],
)
def test_of_many_mistakes_one_is_looked_at(values: dict[str, Any]) -> None:
    from pydantic import ValidationError

    from glimmer.server.openai.requests import ChatBody

    with pytest.raises(ValidationError) as told:
        ChatBody(**{**CHAT, **values})
    assert told.value.error_count() <= 2


@pytest.mark.parametrize(
    ("path", "values", "part"),
    [
        (URL, {"choice": ["a" * 1000] * 200}, r"\(choice\) may have 131072"),
        (URL, {"regex": "a" * 200_000}, r"\(regex\) may have"),
        (URL, {"tool_choice": "required", "tools": [{"type": "function", "function": {
            "name": "f", "parameters": {"type": "object", "description": "x" * 200_000}}}]},
         r"tools to choose from\) may have"),
        (URL, {"stop": "a" * 2000}, "at most 1000 char"),
        ("/api/paas/v4/chat/completions", {"stop": ["a" * 2000]}, "at most 1000 char"),
        ("/v1/messages", {"stop_sequences": ["a" * 2000]}, "at most 1000 char"),
        ("/v1/embeddings", {"input": ["a"] * 3000}, "at most 2048 items"),
    ],
)  # fmt: skip
def test_what_would_take_the_time_of_all_is_refused(
    http: httpx.Client, path: str, values: dict[str, Any], part: str
) -> None:
    answer = http.post(path, json={**CHAT, **values})
    assert answer.status_code == 400
    assert re.search(part, answer.json()["error"]["message"])


@contextmanager
def process_killed(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_a_server_that_is_stopped_finishes_what_runs(models: list[dict[str, Any]]) -> None:
    command = [
        *(sys.executable, "-c", "import sys; from glimmer.cli.main import main; sys.exit(main())"),
        *("serve", f"plain={models[2]['source']}", "--port", "0", "--log-format", "json"),
        *("--kv-memory", "64MiB", "--threads", "1"),
    ]
    environment = {**os.environ, "GLIMMER_DRAIN_S": "60"}
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process,
        process_killed(process),
    ):
        assert process.stderr is not None
        url = ""
        while not url:
            if found := re.search(r"listens at (http://[\d.:]+)", process.stderr.readline()):
                url = found[1]
        while httpx.get(f"{url}/health").status_code == 503:
            time.sleep(0.05)
        with httpx.stream("POST", url + URL, json={**LONG, "stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [*lines][-2] == "data: [DONE]"
        assert process.wait(60) in (0, -signal.SIGTERM)
        told = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert "stopping; what runs may finish" in [line["message"] for line in told]
        (chat,) = [line for line in told if line.get("endpoint") == URL]
        assert chat["status"] == 200
        assert not any("Hello" in json.dumps(line) for line in told)


def test_print_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glimmer.cli.main import main

    file = tmp_path / "glimmer.toml"
    file.write_text(
        'port = 1\nhost = "::1"\ndrain_s = 1\n[[models]]\nname = "a"\nsource = "demo"\n', "utf-8"
    )
    monkeypatch.setenv("GLIMMER_PORT", "2")
    monkeypatch.setenv("GLIMMER_DRAIN_S", "2")
    monkeypatch.setenv("GLIMMER_API_KEY", "hush")
    assert main(["serve", "--config", str(file), "--port", "3", "--print-config"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["port"], told["drain_s"], told["host"]) == (3, 2.0, "::1")
    assert told["models"][0]["name"] == "a"
    assert "hush" not in json.dumps(told)


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["serve"], "There is no model to serve"),
        (["serve", "--engine", "vllm", "--", "-v"], "--engine, what stands after -- would change"),
        (["serve", "--weights", "int4", "--ctx", "99"], "--weights, --max-model-len would change"),
        (["serve", "a=demo", "b=demo", "--backend", "http://a"], "--backend goes with one model"),
        (["serve", "a=demo", "b=demo", "--adapter", "x"], "--adapter goes with one model"),
        (["serve", "demo", "demo"], "called 'demo'"),
        (["serve", "demo", "--alias", "x"], "takes ALIAS=NAME"),
        (["serve", "demo", "--alias", "x=y"], "stands for 'y'"),
        (["serve", "demo", "--alias", "x=y", "--alias", "y=demo"], "stands for 'y'"),
        (["serve", "demo", "--port", "99999"], "port"),
        (["serve", "demo", "--tls-cert", "x.pem"], "TLS needs both"),
        (["serve", "demo", "--config", "none.toml"], "no configuration file"),
        (["serve", "demo", "--host", "0.0.0.0"], "asks for no key"),
        (["serve", "x=/no/such/model", "--port", "0"], "such"),
    ],
)
def test_wrong_uses(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    from glimmer.cli.main import main

    assert main(arguments) == 2
    assert part in " ".join(capsys.readouterr().err.split())
