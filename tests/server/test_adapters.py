"""Adapters by name over HTTP, in every dialect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from glimmer.server.run import Server
from tests.support import families
from tests.support.adapters import file_tensors, random_modules, write_lora
from tests.support.server import running
from tests.test_export import folder, network

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One model, two adapters, an alias."""
    path = tmp_path_factory.mktemp("adapted")
    base = folder(path, "glm4", "native", max_position=512)
    tensors = file_tensors("glm4", "native", network("glm4"))
    named = {
        name: str(write_lora(path / name, random_modules(tensors, 8, seed), lora_alpha=32))
        for seed, name in enumerate(("one", "two"))
    }
    config = {
        **{"name": "base", "source": str(base), "family": "glm4", "adapters": named},
        **{"kv_memory": "32MiB", "threads": 1, "max_num_seqs": 4},
    }
    with running(config, aliases={"glm-4-plus": "base"}) as found:
        yield found


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def said(server: Server, **body: Any) -> str:
    reply = post(server, "/v1/chat/completions", **{**CHAT, **body})
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


def test_by_field_and_by_name_in_every_dialect(adapted: Server) -> None:
    plain = said(adapted, model="base")
    answers = {name: said(adapted, model="base", adapter=name) for name in ("one", "two")}
    assert len({plain, *answers.values()}) == 3
    for name, answer in answers.items():
        assert said(adapted, model=f"base:{name}") == answer
        assert said(adapted, model=f"base:{name}", adapter=name) == answer
        assert said(adapted, model=f"glm-4-plus:{name}") == answer
        body = {**CHAT, "model": "base", "adapter": name}
        reply = post(adapted, "/api/paas/v4/chat/completions", **body)
        assert reply.json()["choices"][0]["message"]["content"] == answer
        reply = post(adapted, "/v1/messages", **body)
        assert reply.json()["content"][0]["text"] == answer
        responses = {"model": "base", "input": "Hello", "max_output_tokens": 12, "temperature": 0}
        reply = post(adapted, "/v1/responses", **responses, adapter=name)
        assert reply.json()["output"][-1]["content"][0]["text"] == answer
        texts = {
            reply.json()["choices"][0]["text"]
            for model, given in (("base", {"adapter": name}), (f"base:{name}", {}))
            for reply in [
                post(
                    adapted,
                    "/v1/completions",
                    **{"model": model, "prompt": "Hello", "temperature": 0, **given},
                )
            ]
        }
        assert len(texts) == 1
    assert said(adapted, model="base") == plain


def test_listed_as_models(adapted: Server) -> None:
    listed = httpx.get(f"{adapted.url}/v1/models").json()["data"]
    assert [m["id"] for m in listed] == ["base", "base:one", "base:two", "glm-4-plus"]
    assert [m.get("root") for m in listed] == [None, "base", "base", "base"]
    assert httpx.get(f"{adapted.url}/v1/models/base:two").json()["root"] == "base"
    assert httpx.get(f"{adapted.url}/v1/models/base:three").status_code == 404


def test_unknown_ones_in_each_dialects_own_form(adapted: Server) -> None:
    body = {**CHAT, "model": "base", "adapter": "three"}
    message = "There is no adapter called 'three' here; there are one, two."
    reply = post(adapted, "/v1/chat/completions", **body)
    assert reply.status_code == 404
    error = reply.json()["error"]
    assert (error["message"], error["param"], error["code"]) == (
        message,
        "adapter",
        "model_not_found",
    )
    reply = post(adapted, "/v1/chat/completions", **{**body, "stream": True})
    assert reply.status_code == 404
    reply = post(adapted, "/v1/messages", **body)
    assert reply.status_code == 404
    assert reply.json()["error"] == {"type": "not_found_error", "message": message}
    reply = post(adapted, "/api/paas/v4/chat/completions", **body)
    assert reply.status_code >= 400
    assert reply.json()["error"]["message"] == message
    reply = post(adapted, "/v1/chat/completions", **{**CHAT, "model": "base:three"})
    assert reply.status_code == 404
    assert "base:one" in reply.json()["error"]["message"]


def test_what_cannot_be(adapted: Server) -> None:
    reply = post(adapted, "/v1/chat/completions", **{**CHAT, "model": "base:one", "adapter": "two"})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "adapter"
    reply = post(adapted, "/v1/embeddings", model="base:one", input="Hello")
    assert reply.status_code == 400
    assert "without an adapter" in reply.json()["error"]["message"]


def test_hot_loading_beside_requests(adapted: Server, tmp_path: Path) -> None:
    import asyncio

    llm = adapted.service.pool.loaded()["base"]
    tensors = file_tensors("glm4", "native", families.tiny_architecture("glm4", vocab_size=544))
    more = write_lora(tmp_path / "more", random_modules(tensors, 4, 9), lora_alpha=32)
    asyncio.run(llm.load_adapter("more", more))
    assert said(adapted, model="base:more") != said(adapted, model="base")
    llm.unload_adapter("more")
    assert (
        post(adapted, "/v1/chat/completions", **{**CHAT, "model": "base:more"}).status_code == 404
    )
