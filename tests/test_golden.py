"""Every fixture of the official code: logits in float32 arithmetic, greedy ids, batches, prefixes.

The folders hold tiny checkpoints in the official layouts and what the official code made of them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from glimmer import LLM, LoadedModel, SamplingParams, load
from glimmer.checkpoints.safetensors import SafetensorsFile
from tests.support import golden

GREEDY_STEPS = 24
NAMES = (
    "chatglm-6b", "chatglm-6b-batch", "chatglm-6b-int4", "chatglm-6b-int4-qe", "chatglm-6b-int8",
    "chatglm-6b-mask", "chatglm-6b-ptuning", "chatglm-6b-ptuning-proj", "chatglm2-6b",
    "chatglm2-6b-32k", "chatglm2-6b-batch", "chatglm2-6b-int4", "chatglm2-6b-int8",
    "chatglm2-6b-ptuning", "chatglm2-6b-ptuning-proj", "chatglm3-6b", "chatglm3-6b-128k",
    "chatglm3-6b-32k", "chatglm3-6b-batch", "chatglm3-6b-ptuning", "glm-4-0414-32b",
    "glm-4-0414-9b", "glm-4-0414-batch", "glm-4-9b-chat", "glm-4-9b-chat-1m",
    "glm-4-9b-chat-batch", "glm-4-9b-chat-hf", "glm-4.5", "glm-4.5-air", "glm-hf-batch",
)  # fmt: skip
_DTYPES = {"float32": "<f4", "int64": "<i8", "bool": "?"}


def test_no_fixture_is_left_out() -> None:
    if not golden.FOLDER.is_dir():
        pytest.skip(f"no golden results at {golden.FOLDER}")
    found = {p.parent.name for p in golden.FOLDER.glob("*/model.safetensors")}
    assert found == set(NAMES)


@cache
def model(name: str) -> LoadedModel:
    return load(golden.folder(name), weights="float32", num_threads=1)


@cache
def results(name: str) -> dict[str, npt.NDArray[Any]]:
    file = SafetensorsFile(golden.folder(name) / "golden.safetensors")
    return {
        key: file.read(key).view(_DTYPES[t.dtype]).reshape(t.shape)
        for key, t in file.tensors.items()
    }


def sequences(name: str) -> list[tuple[int, list[int]]]:
    """For each row of a batch: how many padding tokens are left of it, and its tokens."""
    ids = results(name)["input_ids"].tolist()
    mask = results(name).get("attention_mask")
    if len(ids) == 1 or mask is None:
        return [(0, row) for row in ids]
    # ChatGLM-6B's tells for each pair of tokens whether it is masked: padding sees nothing.
    seen = ~mask[:, 0, -1] if mask.ndim == 4 else mask != 0
    padding = [int(row.argmax()) for row in seen]
    return [(n, row[n:]) for n, row in zip(padding, ids, strict=True)]


def tolerance(name: str) -> float:
    return 2e-4 if name.startswith("chatglm-6b") else 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_logits(name: str) -> None:
    for row, (padding, ids) in enumerate(sequences(name)):
        expected = results(name)["logits"][row, padding:]
        np.testing.assert_allclose(model(name).logits(ids), expected, atol=tolerance(name), rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_what_each_layer_hands_on(name: str) -> None:
    """All but the last, which some fixtures tell before and some after the final norm."""
    layers = model(name).architecture.num_layers
    if "hidden.0" not in results(name):
        pytest.skip("the fixture tells no hidden states")
    for row, (padding, ids) in enumerate(sequences(name)):
        logits, hidden = model(name).trace(ids)
        np.testing.assert_array_equal(logits, model(name).logits(ids))
        for i in range(layers):
            expected = results(name)[f"hidden.{i}"][row, padding:]
            np.testing.assert_allclose(hidden[i], expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_ids_alone_and_in_one_batch(name: str) -> None:
    """Decoding with the cache takes the tokens that the official code takes; its logits are those
    that the whole text gives without a cache."""
    llm = LLM(model(name), max_num_seqs=2, max_model_len=128)
    params = SamplingParams(temperature=0, max_new_tokens=GREEDY_STEPS, ignore_eos=True, logprobs=0)
    prompts = [ids for _, ids in sequences(name)]
    outputs = llm.generate(prompts, params)
    for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        expected = results(name)["greedy_ids"][row, -GREEDY_STEPS:].tolist()
        assert list(output.token_ids) == expected
        assert output.logprobs is not None
        (alone,) = llm.generate([prompt], params)
        assert alone.token_ids == output.token_ids
        assert [p.logprob for p in alone.logprobs or ()] == [p.logprob for p in output.logprobs]
        uncached = model(name).logits([*prompt, *expected])[len(prompt) - 1 : -1]
        if "greedy_step_logits" in results(name):
            official = results(name)["greedy_step_logits"][row]
            np.testing.assert_allclose(uncached, official, atol=tolerance(name), rtol=0)
        shifted = uncached - uncached.max(axis=1, keepdims=True)
        logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        taken = logprobs[np.arange(GREEDY_STEPS), expected]
        np.testing.assert_allclose([p.logprob for p in output.logprobs], taken, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [n for n in NAMES if "-int" in n])
def test_official_integers_run_as_they_are(name: str) -> None:
    """With their own scales and int16 inputs, whose rounding is all that is left of an error."""
    folder = golden.folder(name)
    run = load(folder, num_threads=1)
    stored = SafetensorsFile(folder / "model.safetensors")
    integers = sum(t.size_bytes for t in stored.tensors.values() if t.dtype == "int8")
    assert run.weights_bytes < 2.5 * (integers + 2 * 512 * 64 * 2)
    logits = run.logits(results(name)["input_ids"][0].tolist())
    assert np.abs(logits - results(name)["logits"][0]).max() < 0.05


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "glm-4-9b-chat", "glm-4.5"])
@pytest.mark.parametrize(("weights", "limit"), [("int8", 0.3), ("int4", 2.5)])
def test_quantised_at_load(name: str, weights: Any, limit: float) -> None:
    run = load(golden.folder(name), weights=weights, num_threads=1)
    logits = run.logits(results(name)["input_ids"][0].tolist())
    error = np.abs(logits - results(name)["logits"][0])
    assert 0 < error.mean() < limit


def test_a_folder_without_tokenizer_runs_for_ids_alone() -> None:
    found = model("chatglm3-6b")
    assert not found.has_tokenizer
    assert found.family == "chatglm3"
    assert Path(found.path).name == "chatglm3-6b"
