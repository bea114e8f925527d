"""A server whose network runs in torch: the native engine's answers, forms and refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from glimmer.errors import InvalidParameterError
from glimmer.hf import runner
from glimmer.server import engines, models
from glimmer.server.config import ModelConfig
from glimmer.server.run import Server
from tests.support.adapters import file_tensors, random_modules, write_lora
from tests.support.server import running
from tests.test_export import folder, network


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("m"), "glm4", "native", max_position=1024)


@pytest.fixture(scope="module")
def server(source: Path) -> Iterator[Server]:
    tensors = file_tensors("glm4", "native", network("glm4"))
    adapter = write_lora(source.parent / "a", random_modules(tensors, 8), lora_alpha=32)
    common: dict[str, Any] = {
        **{"source": str(source), "kv_memory": "16MiB", "threads": 1},
        **{"adapters": {"a": str(adapter)}},
    }
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


def test_embeddings(server: Server) -> None:
    vectors = []
    for model in ("native", "torch"):
        body = {"model": model, "input": ["你好", "世界，你好" * 20]}
        response = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60)
        assert response.status_code == 200, response.text
        vectors.append([item["embedding"] for item in response.json()["data"]])
    np.testing.assert_allclose(*vectors, atol=1e-5)


def test_adapters(server: Server) -> None:
    plain = ask(server, "torch")
    adapted = ask(server, "torch", adapter="a")
    assert adapted == ask(server, "torch:a") == ask(server, "native:a") != plain


def test_memory_is_counted_as_it_is_taken(source: Path) -> None:
    """Stored as bfloat16; torch computes in float32 on a processor."""
    stored, widened = (
        engines.weights_bytes(
            ModelConfig(name="m", source=str(source), engine=engine, device="cpu")
        )
        for engine in ("native", "torch")
    )
    assert widened == pytest.approx(2 * stored, rel=0.05)


@pytest.mark.parametrize("kv_memory", [None, "2GiB"])
def test_a_gpu_has_memory_of_its_own(
    source: Path, monkeypatch: pytest.MonkeyPatch, kv_memory: str | None
) -> None:
    """No share of the machine's is asked of it, and what it takes is not of the budget."""
    monkeypatch.setattr(
        runner, "find_device", lambda name: torch.device("cuda" if name == "auto" else name)
    )
    given: dict[str, Any] = {}

    class Loaded:
        is_closed = False
        memory_bytes = 80 << 30

        async def aclose(self) -> None:
            pass

    def open_llm(config: ModelConfig, memory: Any, _is_closing: Any) -> Loaded:
        given[config.name] = memory
        return Loaded()

    monkeypatch.setattr(models, "open_llm", open_llm)
    configs = [
        ModelConfig(name="gpu", source=str(source), engine="torch", kv_memory=kv_memory),
        ModelConfig(name="native", source=str(source)),
        ModelConfig(name="torch", source=str(source), engine="torch", device="cpu"),
    ]

    async def main() -> None:
        pool = models.ModelPool(configs, {}, "200GiB")
        await pool.start()
        for name in ("native", "torch"):
            async with pool.use(name):
                pass
        assert [pool._slots[c.name].size_bytes >> 30 for c in configs] == [0, 80, 80]
        assert list(pool.loaded()) == ["gpu", "native", "torch"]
        await pool.aclose()

    asyncio.run(main())
    assert given["gpu"] == kv_memory
    assert {given["native"] >> 30, given["torch"] >> 30} == {99}  # a half each, less the weights


def test_a_device_that_is_not_there_is_told_before_anything_is_loaded(source: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    config = ModelConfig(name="m", source=str(source), engine="torch", device="cuda")
    with pytest.raises(InvalidParameterError, match="no device 'cuda'"):
        engines.check(config)
