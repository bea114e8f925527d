"""/v1/infill: the blanks of a text filled by a network of ChatGLM-6B's kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import glimmer
from glimmer.server.database import Database
from glimmer.server.keys import open_key_store
from glimmer.server.ledger import Ledger
from glimmer.server.run import Server
from tests.server.test_schema import check_all, common
from tests.support.server import running
from tests.test_export import folder

TEXT = "The quick [MASK] jumps over [sMASK]. 你好[gMASK]"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("infill"), "chatglm", "official", max_position=256)


@pytest.fixture(scope="module")
def served(path: Path, models: list[dict[str, Any]]) -> Iterator[Server]:
    own = {"name": "glm", "source": str(path), "kv_memory": "64MiB", "threads": 1}
    with running(own, {**models[2], "max_model_len": 128}) as found:
        yield found


def ask(server: Server, **values: Any) -> httpx.Response:
    body = {"model": "glm", "prompt": TEXT, "temperature": 0, "max_tokens": 6, **values}
    return httpx.post(f"{server.url}/v1/infill", json=body, timeout=60)


def test_a_text_is_filled(served: Server, path: Path) -> None:
    reply = ask(served)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    params = glimmer.SamplingParams(temperature=0, max_new_tokens=6)
    expected = glimmer.LLM(glimmer.load(path, num_threads=1)).infill(TEXT, params)
    assert answer["object"] == "text_infilling"
    assert answer["id"].startswith("infl-")
    (choice,) = answer["choices"]
    assert choice["text"] == expected.text
    assert choice["finish_reason"] == "length"
    assert choice["fills"] == [
        {"blank": blank, "text": fill.text, "finish_reason": "length"}
        for blank, fill in zip(expected.blanks, expected.fills, strict=True)
    ]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == expected.usage.prompt_tokens
    assert usage["completion_tokens"] == 18
    metrics = httpx.get(f"{served.url}/metrics").text
    assert f'glimmer:generation_tokens_total{{model_name="glm"}} 18.0' in metrics  # noqa: F541


def test_a_stream_says_the_same(served: Server) -> None:
    whole = ask(served).json()
    reply = ask(served, stream=True, stream_options={"include_usage": True})
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    usage = events.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert choices[-1] == {**whole["choices"][0], "text": ""}
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert len(choices) > 3


def test_methods_and_sampling(served: Server) -> None:
    texts = {
        ask(served, method=method, temperature=0.9, seed=5).json()["choices"][0]["text"]
        for method in ("auto", "substitute")
    }
    assert len(texts) == 1
    parts = ask(served, method="parts", temperature=0.9, seed=5).json()["choices"][0]["text"]
    assert parts not in texts
    ended = ask(served, logit_bias={"0": 100}, stop=["x"])
    assert ended.status_code == 200


def test_a_fill_that_runs_in_a_circle_says_so(served: Server, path: Path) -> None:
    word = glimmer.load(path, num_threads=1).tokenizer.encode("o")[-1]
    values = {"prompt": "a [MASK] b", "logit_bias": {str(word): 100}, "max_tokens": 200}
    (choice,) = ask(served, **values).json()["choices"]
    (fill,) = choice["fills"]
    assert len(fill["text"]) < 200
    assert (fill["finish_reason"], fill["stop_reason"]) == ("length", "repetition")
    assert choice["finish_reason"] == "length"
    (choice,) = ask(served, **values, loop_guard=False).json()["choices"]
    assert "stop_reason" not in choice["fills"][0]
    assert len(choice["fills"][0]["text"]) == 200


@pytest.mark.parametrize(
    ("values", "status", "said"),
    [
        ({"prompt": "no blank"}, 400, "no blank to fill"),
        ({"model": "plain"}, 400, "see a text from left to right"),
        ({"model": "plain", "stream": True}, 400, "see a text from left to right"),
        ({"n": 2}, 400, "leave out n"),
        ({"method": "both"}, 400, "auto"),
        ({"prompt": ["[MASK]"]}, 400, "prompt"),
        ({"prompt": TEXT * 40}, 400, "context holds"),
        ({"model": "other"}, 404, "no model called 'other'"),
    ],
)
def test_refusals(served: Server, values: dict[str, Any], status: int, said: str) -> None:
    reply = ask(served, **values)
    assert reply.status_code == status, reply.text
    assert said in reply.json()["error"]["message"]


def test_a_key_needs_the_scope_of_completions_and_is_charged(path: Path, tmp_path: Path) -> None:
    own = {"name": "glm", "source": str(path), "kv_memory": "64MiB", "threads": 1}
    values = {"database": str(tmp_path / "keys.db"), "master_key_file": tmp_path / "master.key"}
    with Database(values["database"]) as database:
        store = open_key_store(database, tmp_path / "master.key")
        allowed = store.create("alpha", endpoints=["completions"])[1]
        other = store.create("alpha", endpoints=["chat"])[1]
        with running(own, **values) as server:
            body = {"model": "glm", "prompt": TEXT, "max_tokens": 4, "temperature": 0}
            replies = [
                httpx.post(f"{server.url}/v1/infill", json=body, headers=headers, timeout=60)
                for headers in (
                    {},
                    {"Authorization": f"Bearer {other}"},
                    {"Authorization": f"Bearer {allowed}"},
                )
            ]
            assert [reply.status_code for reply in replies] == [401, 403, 200]
        used = replies[-1].json()["usage"]
        with Ledger(database) as ledger:
            (row,) = ledger.usage(by=["project"], project="alpha")
        assert row.prompt_tokens == used["prompt_tokens"]
        assert row.completion_tokens == used["completion_tokens"] == 12


def test_the_schema_of_a_model_that_fills(served: Server) -> None:
    """Whatever is sent: no failure of ours, and no answer that is not documented."""
    count = check_all(served, common(40, derandomize=True), model="glm", path="/v1/infill")
    assert count == 1
