"""A server whose network runs in torch: the native engine's answers, forms and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from glimmer.server import engines
from glimmer.server.config import ModelConfig
from glimmer.server.run import Server
from tests.support.server import running
from tests.test_export import folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("m"), "glm4", "native", max_position=1024)


@pytest.fixture(scope="module")
def server(source: Path) -> Iterator[Server]:
    common: dict[str, Any] = {"source": str(source), "kv_memory": "16MiB", "threads": 1}
    with running(
        {"name": "native", "weights": "float32", **common},
        {"name": "torch", "engine": "torch", "device": "cpu", **common},
    ) as found:
        yield found


def ask(server: Server, model: str, **values: Any) -> Any:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "你好，世界"}],
        "max_tokens": 24,
        "temperature": 0,
        **values,
    }
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_the_same_answers(server: Server) -> None:
    assert ask(server, "torch") == ask(server, "native")
    drawn = {"temperature": 1.0, "top_p": 0.9, "seed": 5}
    assert ask(server, "torch", **drawn) == ask(server, "native", **drawn)


def test_answers_in_a_form(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["S", "M"]}},
        "required": ["size"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = ask(server, "torch", response_format=form, max_tokens=200)
    assert json.loads(answer)["size"] in ("S", "M")


def test_no_embeddings(server: Server) -> None:
    body = {"model": "torch", "input": "你好"}
    response = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60)
    assert response.status_code == 400
    assert "native engine" in response.text


def test_memory_is_counted_as_it_is_taken(source: Path) -> None:
    """Stored as bfloat16; torch computes in float32 on a processor."""
    stored, widened = (
        engines.weights_bytes(
            ModelConfig(name="m", source=str(source), engine=engine, device="cpu")
        )
        for engine in ("native", "torch")
    )
    assert widened == pytest.approx(2 * stored, rel=0.05)
