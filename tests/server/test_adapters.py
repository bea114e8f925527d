"""Adapters by name over HTTP, in every dialect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from glimmer.errors import InvalidParameterError, MalformedCheckpointError, ModelNotFoundError
from glimmer.server.config import load_config
from glimmer.server.database import Database
from glimmer.server.keys import open_key_store
from glimmer.server.run import Server
from tests.support import families
from tests.support.adapters import file_tensors, random_modules, write_lora
from tests.support.server import running
from tests.test_export import folder, network

NETWORK = families.tiny_architecture("glm4", vocab_size=544)
MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("base"), "glm4", "native", max_position=512)


def served(base: Path, path: Path) -> dict[str, Any]:
    """One model and two adapters, which are written into ``path``."""
    tensors = file_tensors("glm4", "native", network("glm4"))
    named = {
        name: str(write_lora(path / name, random_modules(tensors, 8, seed), lora_alpha=32))
        for seed, name in enumerate(("one", "two"))
    }
    return {
        **{"name": "base", "source": str(base), "family": "glm4", "adapters": named},
        **{"kv_memory": "32MiB", "threads": 1, "max_num_seqs": 4},
    }


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One model, two adapters, an alias."""
    config = served(base, tmp_path_factory.mktemp("adapted"))
    with running(config, aliases={"glm-4-plus": "base"}) as found:
        yield found


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def said(server: Server, **body: Any) -> str:
    reply = post(server, "/v1/chat/completions", **{**CHAT, **body})
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


def streamed(server: Server, model: str) -> Iterator[str]:
    """The pieces of a long answer."""
    body = {**CHAT, "model": model, "max_tokens": 300, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                yield choice["delta"].get("content") or ""


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


@pytest.mark.parametrize("number", [0, 1])
def test_one_that_does_not_fit_is_told_before_anything_is_loaded(
    base: Path, tmp_path: Path, number: int
) -> None:
    """Of a model too that is loaded when somebody asks for it."""
    other = families.tiny_architecture("glm4", vocab_size=544, num_layers=4)
    modules = random_modules(file_tensors("glm4", "native", other), 4)
    lora = write_lora(tmp_path / "lora", modules)
    models = [{"name": name, "source": str(base), "family": "glm4"} for name in ("a", "b")]
    for path, error, message in (
        (lora, MalformedCheckpointError, "no linear of this network"),
        (tmp_path / "none", ModelNotFoundError, "There is no folder"),
    ):
        models[number]["adapters"] = {"x": str(path)}  # type: ignore[assignment]
        config = load_config(models=models, port=0, database=str(tmp_path / "server.db"))
        with pytest.raises(error, match=message):
            Server(config)


def test_a_key_may_be_for_one_adapter(base: Path, tmp_path: Path) -> None:
    """However a request asks for it, and for nothing else of the model's."""
    values = {"database": str(tmp_path / "server.db"), "master_key_file": tmp_path / "master.key"}
    with Database(values["database"]) as database:
        store = open_key_store(database, tmp_path / "master.key")
        keys = {
            model: store.create(model, models=[model])[1]
            for model in ("base:one", "glm-4-plus:two", "base")
        }
    config = served(base, tmp_path)
    chat, tasks = "/v1/chat/completions", "/api/paas/v4/async/chat/completions"
    with running(config, aliases={"glm-4-plus": "base"}, **values) as server:

        def status(key: str, path: str = chat, **body: Any) -> int:
            headers = {"authorization": f"Bearer {keys[key]}"}
            body = {**CHAT, "max_tokens": 1, **body}
            return httpx.post(server.url + path, json=body, headers=headers).status_code

        def listed(key: str) -> list[str]:
            headers = {"authorization": f"Bearer {keys[key]}"}
            found = httpx.get(f"{server.url}/v1/models", headers=headers).json()["data"]
            return [model["id"] for model in found]

        for path, refused in ((chat, 403), (tasks, 400)):
            for key, adapter, other in (
                ("base:one", "one", "two"),
                ("glm-4-plus:two", "two", "one"),
            ):
                model = key.partition(":")[0]
                assert status(key, path, model=key) == 200
                assert status(key, path, model=model, adapter=adapter) == 200
                assert status(key, path, model=model) == refused
                assert status(key, path, model=model, adapter=other) == refused
                assert status(key, path, model=f"{model}:{other}") == refused
                assert status(key, path, model=model, adapter="none") == refused
            assert status("base:one", path, model="glm-4-plus:one") == 200
            assert status("base", path, model="base", adapter="one") == 200
        assert status("base:one", "/v1/embeddings", model="base", input="a") == 403
        assert listed("base:one") == ["base:one"]
        assert listed("base") == ["base", "base:one", "base:two", "glm-4-plus"]


def test_names_with_colons(adapted: Server, tmp_path: Path) -> None:
    """One of them is listed, found, and takes nothing from the others."""
    llm = adapted.service.pool.loaded()["base"]
    folder = write_lora(tmp_path / "a", random_modules(file_tensors("glm4", "native", NETWORK), 4))
    asyncio.run(llm.load_adapter("run:12", folder))
    try:
        listed = httpx.get(f"{adapted.url}/v1/models")
        assert listed.status_code == 200
        assert "base:run:12" in [m["id"] for m in listed.json()["data"]]
        assert httpx.get(f"{adapted.url}/v1/models/base:run:12").json()["root"] == "base"
        answer = said(adapted, model="base", adapter="run:12")
        assert said(adapted, model="base:run:12") == answer
        assert said(adapted, model="glm-4-plus:run:12") == answer
        for name in ("base:run", "base:12", "base:", ":", ":" * 10**6):
            reply = post(adapted, "/v1/chat/completions", **{**CHAT, "model": name})
            assert reply.status_code == 404, reply.text
    finally:
        llm.unload_adapter("run:12")


def test_hot_loading_beside_requests(adapted: Server, tmp_path: Path) -> None:
    """Those of the base and of other adapters run on, to the same answers."""
    llm = adapted.service.pool.loaded()["base"]
    tensors = file_tensors("glm4", "native", NETWORK)
    more = write_lora(tmp_path / "more", random_modules(tensors, 4, 9), lora_alpha=32)
    asked = ["base", "base:one"]
    expected = {model: "".join(streamed(adapted, model)) for model in asked}
    running = {model: streamed(adapted, model) for model in asked}
    begun = {model: next(answer) for model, answer in running.items()}
    asyncio.run(llm.load_adapter("more", more))
    answer = said(adapted, model="base:more")
    # Who has begun with it ends with it.
    expected["base:more"] = "".join(streamed(adapted, "base:more"))
    running["base:more"] = streamed(adapted, "base:more")
    begun["base:more"] = next(running["base:more"])
    llm.unload_adapter("more")
    for model, rest in running.items():
        assert begun[model] + "".join(rest) == expected[model]
    assert answer != said(adapted, model="base")
    assert (
        post(adapted, "/v1/chat/completions", **{**CHAT, "model": "base:more"}).status_code == 404
    )


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            [{"name": "a", "adapters": {"b": "x"}}, {"name": "a:b"}],
            "'a:b' is what clients may call 'a' with its adapter 'b', and the name of a model",
        ),
        (
            [{"name": "a", "adapters": {"b:c": "x"}}, {"name": "a:b", "adapters": {"c": "x"}}],
            "'a:b:c' is what",
        ),
        ([{"name": "a", "adapters": {"": "x"}}], "a: an adapter's name is empty"),
    ],
)
def test_a_name_stands_for_one_thing(models: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        load_config(models=[{"source": "demo", **model} for model in models])
