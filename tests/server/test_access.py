"""Keys, limits and the ledger, as clients of a real server meet them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import openai
import pytest

from glimmer.server import keys
from glimmer.server.database import Database
from glimmer.server.errors import ApiError
from glimmer.server.keys import KeyStore, open_key_store
from glimmer.server.ledger import Ledger
from glimmer.server.limits import Limits
from glimmer.server.run import Server
from tests.server.test_bigmodel import zai, zhipuai
from tests.support.server import running

CHAT: dict[str, Any] = {
    "model": "plain", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4,
}  # fmt: skip
URL = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[KeyStore]:
    with Database(str(folder / "server.db")) as database:
        yield open_key_store(database, folder / "master.key")


@pytest.fixture(scope="module")
def key(store: KeyStore) -> str:
    """Of the project "alpha", without limits."""
    return store.create("alpha", name="Ann")[1]


@pytest.fixture(scope="module")
def server(models: list[dict[str, Any]], folder: Path, key: str) -> Iterator[Server]:
    values = {"database": str(folder / "server.db"), "master_key_file": folder / "master.key"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "CACHE_S", 0.1)  # so that nobody waits two seconds for a new key
        with running(models[2], models[0], aliases={"glm-4-plus": "plain"}, **values) as found:
            yield found


def post(server: Server, key: str | None, url: str = URL, **values: Any) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.post(server.url + url, json={**CHAT, **values}, headers=headers)


def client(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def test_every_client_gets_in_with_its_own_header(server: Server, key: str) -> None:
    with client(server, key) as http:
        assert http.chat.completions.create(**CHAT).usage is not None
    base = f"{server.url}/api/paas/v4"
    # Plain, and signed with the secret; the SDKs have both ways.
    for is_plain in (True, False):
        for make in (zai.ZaiClient, zhipuai.ZhipuAI):
            found = make(api_key=key, base_url=base, max_retries=0, disable_token_cache=is_plain)
            with closing(found):
                answer = found.chat.completions.create(**CHAT)
                assert answer.usage.completion_tokens > 0
    headers = {"x-api-key": key}
    assert httpx.post(server.url + URL, json=CHAT, headers=headers).status_code == 200
    headers = {"authorization": key}  # without "Bearer"
    assert httpx.post(server.url + URL, json=CHAT, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("shown", "code", "platform"),
    [
        (None, "missing_api_key", "1001"),
        ("nonsense", "invalid_api_key", "1002"),
        ("0" * 32 + "." + "a" * 32, "invalid_api_key", "1002"),
        ("{id}." + "a" * 32, "invalid_api_key", "1004"),
        ("{expired token}", "expired_api_key", "1003"),
        ("{expired key}", "expired_api_key", "1003"),
        ("{revoked}", "invalid_api_key", "1002"),
    ],
)
def test_who_is_turned_away(
    server: Server, store: KeyStore, key: str, shown: str | None, code: str, platform: str
) -> None:
    key_id, _, secret = key.partition(".")
    if shown == "{revoked}":
        found, shown = store.create("alpha")
        store.revoke(found.id)
    elif shown == "{expired key}":
        soon = datetime.now(UTC) + timedelta(seconds=0.2)
        shown = store.create("alpha", expires_at=soon)[1]
        time.sleep(0.3)
    elif shown == "{expired token}":
        now = int(time.time() * 1000)
        claims = {"api_key": key_id, "exp": now - 1000, "timestamp": now - 9000}
        shown = jwt.encode(claims, secret, "HS256", {"sign_type": "SIGN"})
    elif shown is not None:
        shown = shown.replace("{id}", key_id)
    # The server reads the keys anew now and then.
    deadline = time.monotonic() + 30
    while (answer := post(server, shown)).status_code == 200 or (
        answer.json()["error"]["code"] != code and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == code
    if shown is not None:
        assert shown not in answer.text
    answer = post(server, shown, "/api/paas/v4/chat/completions")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == platform


@pytest.mark.parametrize("url", [URL, "/v1/files", "/v1/messages", "/api/paas/v4/embeddings"])
def test_a_strangers_body_is_not_taken_in(server: Server, url: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST {url} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401")


def test_errors_have_the_clients_own_types(server: Server, key: str) -> None:
    with client(server, "wrong") as http, pytest.raises(openai.AuthenticationError):
        http.models.list()
    with pytest.raises(zai.core.APIAuthenticationError):
        zai.ZaiClient(
            api_key="a.b", base_url=f"{server.url}/api/paas/v4", max_retries=0
        ).chat.completions.create(**CHAT)


def test_scopes(server: Server, store: KeyStore) -> None:
    _, text = store.create("beta", models=["glm-4-plus"], endpoints=["chat", "models"])
    settle(server, text)
    with client(server, text) as http:
        http.chat.completions.create(**{**CHAT, "model": "glm-4-plus"})
        with pytest.raises(openai.PermissionDeniedError, match="this model"):
            http.chat.completions.create(**{**CHAT, "model": "glm-4"})
        with pytest.raises(openai.PermissionDeniedError, match="'embeddings'"):
            http.embeddings.create(model="plain", input="a")
        assert [m.id for m in http.models.list()] == ["glm-4-plus"]


def settle(server: Server, text: str) -> None:
    """Wait until the server knows a new key."""
    headers = {"authorization": f"Bearer {text}"}
    while httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 401:
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("limits", "code", "platform"),
    [
        (Limits(requests_per_minute=2), "rate_limit_exceeded", "1303"),
        (Limits(tokens_per_minute=30), "rate_limit_exceeded", "1303"),
        (Limits(requests_per_day=2), "daily_limit_exceeded", "1304"),
        (Limits(tokens_per_day=30), "daily_limit_exceeded", "1304"),
    ],
)
def test_limits(server: Server, store: KeyStore, limits: Limits, code: str, platform: str) -> None:
    _, text = store.create("gamma", limits=limits)
    settle(server, text)
    first = post(server, text)
    assert first.status_code == 200
    what = "tokens" if limits.tokens_per_minute or limits.tokens_per_day else "requests"
    assert int(first.headers[f"x-ratelimit-limit-{what}"]) in (2, 30)
    answers = [post(server, text) for _ in range(3)]
    refused = answers[-1]
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == code
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers[f"x-ratelimit-remaining-{what}"] == "0"
    refused = post(server, text, "/api/paas/v4/chat/completions")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, platform)
    with client(server, text) as http, pytest.raises(openai.RateLimitError):
        http.chat.completions.create(**CHAT)
    assert 'glimmer:rate_limited_total{kind="' in httpx.get(f"{server.url}/metrics").text


def test_requests_at_once(server: Server, store: KeyStore) -> None:
    _, text = store.create("delta", limits=Limits(concurrency=1))
    settle(server, text)
    values = {**CHAT, "max_tokens": 4000, "ignore_eos": True, "loop_guard": False, "stream": True}
    headers = {"authorization": f"Bearer {text}"}
    with httpx.stream("POST", server.url + URL, json=values, headers=headers) as answer:
        lines = answer.iter_lines()
        next(lines)
        refused = post(server, text)
        assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
        lines.close()  # type: ignore[attr-defined]
    while post(server, text).status_code == 429:
        time.sleep(0.01)


def test_the_ledger_has_it_all_and_no_text(server: Server, store: KeyStore, folder: Path) -> None:
    _, text = store.create("epsilon", name="Eve")
    settle(server, text)
    whole = post(server, text).json()["usage"]
    post(server, text, "/v1/embeddings", input="secret words")
    streamed = post(server, text, stream=True)
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert post(server, text, model="none").status_code == 404
    headers = {"authorization": f"Bearer {text}"}
    told = httpx.get(f"{server.url}/usage?by=project,model", headers=headers).json()["data"]
    # What is answered is written: nothing is waited for.
    (row,) = told
    assert (row["project"], row["model"], row["requests"]) == ("epsilon", "plain", 3)
    assert row["completion_tokens"] == 2 * whole["completion_tokens"]
    assert row["errors"] == 0
    with Database(str(folder / "server.db")) as database:
        with Ledger(database) as ledger:
            (day,) = ledger.usage(["day", "key"], project="epsilon")
        assert day.key_name == "Eve"
    for file in folder.iterdir():
        data = file.read_bytes()
        assert b"secret words" not in data
        assert text.partition(".")[2].encode() not in data, "no secret is stored"
    _, admin = store.create("ops", endpoints=["admin"])
    settle(server, admin)
    seen = httpx.get(f"{server.url}/usage?by=project", headers={"x-api-key": admin}).json()["data"]
    assert {"alpha", "epsilon"} <= {row["project"] for row in seen}
    bad = httpx.get(f"{server.url}/usage?by=colour", headers=headers)
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "by")


@pytest.mark.parametrize("stream", [True, False])
def test_a_clients_departure_is_recorded(
    server: Server, store: KeyStore, folder: Path, stream: bool
) -> None:
    """With what was computed for it until then, streamed or not."""
    project = f"zeta-{stream}"
    _, text = store.create(project)
    settle(server, text)
    body = json.dumps(
        {**CHAT, "max_tokens": 4000, "ignore_eos": True, "loop_guard": False, "stream": stream}
    ).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST {URL} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {text}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    llm = server.service.pool.loaded()["plain"]
    steps = llm.stats.num_steps
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        while llm.stats.num_steps < steps + 20:
            time.sleep(0.001)
        for _ in range(2):  # once these are answered, so was the news of those steps taken
            assert httpx.get(f"{server.url}/health").status_code == 200
    with Database(str(folder / "server.db")) as database, Ledger(database) as ledger:
        while not (rows := ledger.usage(["project"], project=project)):
            time.sleep(0.01)
    assert (rows[0].requests, rows[0].errors) == (1, 1)
    assert rows[0].completion_tokens > 0


def test_one_key_of_the_configuration(models: list[dict[str, Any]]) -> None:
    with running(models[2], api_key="open-sesame", host="0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        for shown, status in (("open-sesame", 200), ("open", 401), ("öffne dich", 401)):
            headers = {"authorization": f"Bearer {shown}".encode()}
            assert httpx.post(url + URL, json=CHAT, headers=headers).status_code == status
        assert httpx.post(url + URL, json=CHAT).status_code == 401
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_server_that_is_killed_has_written_what_it_answered(
    models: list[dict[str, Any]], tmp_path: Path
) -> None:
    code = "import sys; from glimmer.cli.main import main; sys.exit(main())"
    command = [
        *(sys.executable, "-c", code, "serve", f"plain={models[2]['source']}", "--port", "0"),
        *("--kv-memory", "64MiB", "--threads", "1", "--database", str(tmp_path / "server.db")),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            assert process.stderr is not None
            url = ""
            while not url:
                if found := re.search(r"listens at (http://[\d.:]+)", process.stderr.readline()):
                    url = found[1]
            while httpx.get(f"{url}/health").status_code == 503:
                time.sleep(0.05)
            answered = 0
            for number in range(20):
                answer = httpx.post(url + URL, json={**CHAT, "stream": number % 2 == 0})
                assert answer.status_code == 200
                answered += 1
        finally:
            process.send_signal(signal.SIGKILL)
    with Database(str(tmp_path / "server.db")) as database, Ledger(database) as ledger:
        (row,) = ledger.usage([])
    assert row.requests == answered
    assert json.dumps(row.completion_tokens) > "0"


def test_files_and_batches_are_a_projects_own(server: Server, store: KeyStore) -> None:
    _, ours = store.create("eta")
    _, theirs = store.create("theta")
    gone, revoked = store.create("eta")
    for text in (ours, theirs, revoked):
        settle(server, text)
    headers = {"authorization": f"Bearer {ours}"}
    others = {"authorization": f"Bearer {theirs}"}
    line = json.dumps({"custom_id": "a", "body": CHAT})
    with httpx.Client(base_url=f"{server.url}/v1", headers=headers) as http:
        file = http.post("/files", files={"file": line}, data={"purpose": "batch"}).json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
        batch = http.post("/batches", json=body).json()
        while (told := http.get(f"/batches/{batch['id']}").json())["status"] != "completed":
            time.sleep(0.02)
        for path in (f"/files/{file['id']}", f"/batches/{batch['id']}"):
            assert http.get(path, headers=others).status_code == 404
        assert http.get("/files", headers=others).json()["data"] == []
        usage = httpx.get(f"{server.url}/usage?by=model", headers=headers).json()["data"]
        assert [row["requests"] for row in usage] == [1]
        # A key that is revoked meanwhile pays for nothing any more.
        assert told["request_counts"]["completed"] == 1
        store.revoke(gone.id)
        while (
            httpx.get(f"{server.url}/v1/models", headers={"x-api-key": revoked}).status_code == 200
        ):
            time.sleep(0.05)
    with pytest.raises(ApiError, match="revoked"):
        asyncio.run(server.service.access.owner(gone.id))
