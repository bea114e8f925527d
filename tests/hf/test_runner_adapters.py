"""Adapters on torch: the native engine's tokens, and in any company what a request gets alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glimmer
from glimmer import LLM, RequestOutput, SamplingParams
from glimmer.errors import InvalidParameterError, UnsupportedArchitectureError
from glimmer.hf import runner
from glimmer.hf.adapters import TorchPrefix
from tests.support import adapters
from tests.support.adapters import file_tensors, random_modules, write_lora, write_prefix
from tests.test_export import LAYOUTS, folder, network

GREEDY = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True, logprobs=0)
OPTIONS: dict[str, Any] = {"max_model_len": 400, "max_num_seqs": 8}


def lora(path: Path, family: str, layout: str, seed: int, *more: str, **config: Any) -> Path:
    """On all linears but those of experts that a router chooses."""
    names = (*adapters.MODULES, *more)
    tensors = file_tensors(family, layout, network(family))
    modules = {
        name: halves
        for name, halves in random_modules(tensors, 4 + seed, seed, names).items()
        if ".experts." not in name
    }
    return write_lora(path, modules, lora_alpha=24, **config)


def prefix(path: Path, family: str, length: int) -> Path:
    values = adapters.random_prefix(network(family), length, 3)
    return write_prefix(path, values.reshape(length, -1))


def prompts(model: glimmer.LoadedModel) -> list[list[int]]:
    """One of them longer than a step."""
    rng = np.random.default_rng(3)
    made = []
    for length in (3, 40, 300):
        ids = rng.integers(300, 340, length).tolist()
        if (blanks := model.architecture.blanks) is not None:
            ids += [blanks.blank_ids[0], blanks.start_id]
        made.append(ids)
    return made


def same(found: RequestOutput, expected: RequestOutput) -> None:
    assert found.token_ids == expected.token_ids
    np.testing.assert_allclose(logprobs(found), logprobs(expected), atol=1e-3)


def logprobs(output: RequestOutput) -> list[float]:
    return [p.logprob for p in output.logprobs or ()]


def in_one_batch(
    llm: LLM, asked: list[tuple[list[int], str | None]], params: SamplingParams = GREEDY
) -> list[RequestOutput]:
    prepared = [
        p
        for ids, adapter in asked
        for p in llm._session.prepare_prompts([ids], params, False, 0, adapter)
    ]
    return llm._finish(prepared)


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_the_native_engines_tokens_alone_and_together(
    tmp_path: Path, family: str, layout: str
) -> None:
    path = folder(tmp_path, family, layout, max_position=512)
    named: Mapping[str, Path] = {
        "one": lora(tmp_path / "one", family, layout, 1),
        "two": lora(tmp_path / "two", family, layout, 2),
        "prefix": prefix(tmp_path / "prefix", family, 40),
    }
    native = LLM(
        glimmer.load(path, weights="float32", family=family, num_threads=1),
        adapters=named, **OPTIONS,
    )  # fmt: skip
    torched = LLM(
        runner.load(path, device="cpu", dtype="float32", family=family),
        adapters=named, **OPTIONS,
    )  # fmt: skip
    texts = prompts(native.model)  # type: ignore[arg-type]
    expected = {}
    for name in (None, *named):
        for i, output in enumerate(native.generate(texts, GREEDY, adapter=name)):
            expected[i, name] = output
    for i in range(len(texts)):
        for one, other in itertools.combinations((None, *named), 2):
            apart = np.subtract(*(logprobs(expected[i, name]) for name in (one, other)))
            assert np.abs(apart).max() > 1e-2, "the adapters must change something"
    for name in (None, *named):
        for i, output in enumerate(torched.generate(texts, GREEDY, adapter=name)):
            same(output, expected[i, name])
    asked = [(i, name) for i in (1, 0, 2) for name in ("one", None, "prefix", "two")]
    outputs = in_one_batch(torched, [(texts[i], name) for i, name in asked])
    for key, output in zip(asked, outputs, strict=True):
        same(output, expected[key])
    assert torched._session.adapters.size_bytes > 0


def test_a_head_that_is_adapted(tmp_path: Path) -> None:
    """It sees the rows alone whose logits are wanted: not those of a prompt's first tokens."""
    path = folder(tmp_path, "glm4", "native", max_position=512)
    named = {"head": lora(tmp_path / "head", "glm4", "native", 3, "lm_head")}
    models = (
        glimmer.load(path, weights="float32", num_threads=1),
        runner.load(path, device="cpu"),
    )
    native, torched = (LLM(model, adapters=named, **OPTIONS) for model in models)
    texts = prompts(models[0])
    asked = [(ids, name) for ids in texts for name in (None, "head")]
    for ours, theirs in zip(in_one_batch(native, asked), in_one_batch(torched, asked), strict=True):
        same(theirs, ours)


def test_pefts_prefix(tmp_path: Path) -> None:
    """Whose keys are turned back by its length."""
    import json

    from safetensors.torch import save_file

    a = network("glm4")
    values = torch.randn(
        6, a.num_layers * 2 * a.num_kv_heads * a.head_dim,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    (tmp_path / "p").mkdir()
    save_file({"prompt_embeddings": values}, tmp_path / "p" / "adapter_model.safetensors")
    config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 6, "prefix_projection": False}
    (tmp_path / "p" / "adapter_config.json").write_text(json.dumps(config))
    path = folder(tmp_path, "glm4", "native", max_position=512)
    models = (glimmer.load(path, weights="float32"), runner.load(path, device="cpu"))
    native, torched = (LLM(m, adapters={"p": tmp_path / "p"}, **OPTIONS) for m in models)
    texts = prompts(models[0])
    for ours, theirs in zip(
        native.generate(texts, GREEDY, adapter="p"),
        torched.generate(texts, GREEDY, adapter="p"),
        strict=True,
    ):
        same(theirs, ours)


@pytest.mark.parametrize(("repeats", "count", "num_blocks"), [(6, 70, 6), (9, 60, 16)])
def test_preempted_or_found_in_the_cache(
    tmp_path: Path, repeats: int, count: int, num_blocks: int
) -> None:
    """What the engine does with sequences has no part in what they say."""
    path = folder(tmp_path, "glm4", "native", max_position=512)
    named = {
        "one": lora(tmp_path / "one", "glm4", "native", 1),
        "prefix": prefix(tmp_path / "prefix", "glm4", 5),
    }
    model = runner.load(path, device="cpu")
    block_bytes = 32 * 2 * model.architecture.kv_bytes_per_token
    params = SamplingParams(temperature=0, max_new_tokens=count, ignore_eos=True)
    text = [300, 301, 302, 303] * repeats
    options: dict[str, Any] = {"max_model_len": 120, "max_num_seqs": 4, "adapters": named}
    plain = LLM(model, speculation=False, prefix_caching=False, **options)
    expected = {n: plain.generate([text], params, adapter=n)[0].token_ids for n in named}
    llm = LLM(model, kv_memory=num_blocks * block_bytes, **options)
    for _ in range(2):
        outputs = in_one_batch(llm, [(text, n) for n in expected for _ in range(2)], params)
        for output, name in zip(outputs, [n for n in expected for _ in range(2)], strict=True):
            assert output.token_ids == expected[name]
    assert (llm.stats.num_preemptions if num_blocks == 6 else llm.stats.num_cached_tokens) > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tmp_path: Path, dtype: str) -> None:
    """A, B and their inputs are float32: what is added is rounded once, with the sum."""
    path = folder(tmp_path, "glm4", "native", max_position=512)
    named = {"one": lora(tmp_path / "one", "glm4", "native", 1)}
    exact = LLM(runner.load(path, device="cpu"), adapters=named, **OPTIONS)
    half = LLM(runner.load(path, device="cpu", dtype=dtype), adapters=named, **OPTIONS)
    params = SamplingParams(temperature=0, max_new_tokens=1, ignore_eos=True, logprobs=0)
    text = prompts(exact.model)[1]  # type: ignore[arg-type]
    found = [
        llm.generate([text], params, adapter=name)[0].logprobs[0].logprob  # type: ignore[index]
        for llm in (exact, half)
        for name in ("one", None)
    ]
    adapted, plain, rounded, rounded_plain = found
    assert abs(rounded - adapted) < 0.2
    assert abs(rounded_plain - plain) < 0.2


def test_refusals(tmp_path: Path) -> None:
    path = folder(tmp_path, "glm45", "native", max_position=512)
    tensors = file_tensors("glm45", "native", network("glm45"))
    experts = write_lora(
        tmp_path / "experts",
        {n: h for n, h in random_modules(tensors, 4).items() if ".experts.0." in n},
    )
    model = runner.load(path, device="cpu")
    with pytest.raises(UnsupportedArchitectureError, match=r"experts.*merge"):
        LLM(model, adapters={"e": experts}, **OPTIONS)
    folders = {"p": prefix(tmp_path / "p", "glm45", 4)}
    with pytest.raises(InvalidParameterError, match="int8"):
        LLM(model, adapters=folders, kv_cache="int8", **OPTIONS)
    a = model.architecture
    with pytest.raises(InvalidParameterError, match=r"\[length, "):
        TorchPrefix(a, np.zeros((4, 2), np.float32), torch.float32, torch.device("cpu"))
