"""A merged model gives what base and adapter give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glimmer import LLM, SamplingParams, load
from glimmer.errors import InvalidParameterError, MalformedCheckpointError
from glimmer.export import convert
from glimmer.merging import MergedForm, merge
from tests.adapters.test_requests import PREFIXED, answers, without_prefix
from tests.support import adapters, families, golden
from tests.support.adapters import (
    add_modules,
    file_tensors,
    random_half,
    random_modules,
    write_lora,
)
from tests.support.tiny import Floats, random_text
from tests.support.tiny_gguf import tiny_gguf
from tests.test_export import LAYOUTS
from tests.test_golden import results, sequences

FORMS: tuple[MergedForm, ...] = ("hf", "official", "gguf")


def logits(path: Path, family: str, ids: list[int]) -> Floats:
    return load(path, weights="float32", family=family, num_threads=1).logits(ids)


@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_every_form(tmp_path: Path, family: str, layout: str, to: MergedForm) -> None:
    network = families.tiny_architecture(family)
    tensors = file_tensors(family, layout, network)
    modules = random_modules(tensors, 4)  # experts too
    base = adapters.write_base(tmp_path / "base", family, layout, network, tensors)
    folder = write_lora(tmp_path / "a", modules, lora_alpha=12)
    whole = adapters.write_base(
        tmp_path / "merged", family, layout, network, add_modules(tensors, modules, 3.0)
    )
    target = tmp_path / ("out.gguf" if to == "gguf" else "out")
    if to == "official" and family in ("glm4", "glm4_0414", "glm45"):
        with pytest.raises(InvalidParameterError, match="official code's layout"):
            merge(base, folder, target, to=to, family=family)
        assert not target.exists()
        return
    written = merge(base, folder, target, to=to, family=family)
    assert written.path == target
    assert set(written.dtypes) == {"float32"}
    ids = random_text(network, 40, np.random.default_rng(0)).tolist()
    expected = logits(whole, family, ids)
    np.testing.assert_allclose(logits(target, family, ids), expected, atol=1e-4)
    assert np.abs(expected - logits(base, family, ids)).max() > 0.1


def test_stored_as_the_base_or_as_asked(tmp_path: Path) -> None:
    network = families.tiny_architecture("glm4")
    tensors = file_tensors("glm4", "native", network)
    base = adapters.write_base(
        tmp_path / "base", "glm4", "native", network, tensors, dtype="bfloat16"
    )
    folder = write_lora(tmp_path / "a", random_modules(tensors, 4))
    assert set(merge(base, folder, tmp_path / "b", family="glm4").dtypes) == {"bfloat16"}
    written = merge(base, folder, tmp_path / "c", dtype="float32", family="glm4")
    assert set(written.dtypes) == {"float32"}
    with pytest.raises(InvalidParameterError, match="exists already"):
        merge(base, folder, tmp_path / "b", family="glm4")
    merge(base, folder, tmp_path / "b", family="glm4", overwrite=True)


def test_a_quantised_base(tmp_path: Path) -> None:
    """Its blocks are read, the sum is made in float32, and written in the same blocks."""
    network = families.tiny_architecture("chatglm2")
    tensors = file_tensors("chatglm2", "official", network)
    base = adapters.write_base(tmp_path / "base", "chatglm2", "official", network, tensors)
    from glimmer.export import quantize_model

    quantize_model(base, tmp_path / "q8.gguf", "q8_0")
    modules = random_modules(tensors, 4)
    folder = write_lora(tmp_path / "a", modules, lora_alpha=12)
    written = merge(tmp_path / "q8.gguf", folder, tmp_path / "out.gguf", to="gguf")
    assert set(written.dtypes) == {"q8_0", "float32"}
    whole = adapters.write_base(
        tmp_path / "w", "chatglm2", "official", network, add_modules(tensors, modules, 3.0)
    )
    ids = list(range(40))
    difference = logits(tmp_path / "out.gguf", "chatglm2", ids) - logits(whole, "chatglm2", ids)
    assert np.abs(difference).mean() < 0.05


@pytest.mark.parametrize("dtype", ["q6_k", "q5_k", "q5_0"])
def test_a_base_in_blocks_that_are_only_read(tmp_path: Path, dtype: str) -> None:
    """As most files for llama.cpp have some: what the adapter changes becomes q8_0."""
    base = tiny_gguf(
        tmp_path / "base.gguf", dtype, hidden_size=256, intermediate_size=256, head_dim=64
    )
    modules = {
        f"model.layers.1.{name}": random_half(256, 256, 4, np.random.default_rng(0))
        for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    folder = write_lora(tmp_path / "a", modules, lora_alpha=12)
    exact = merge(base, folder, tmp_path / "exact", dtype="float32")
    assert set(exact.dtypes) == {"float32"}
    written = merge(base, folder, tmp_path / "out.gguf", to="gguf")
    assert written.dtypes.keys() == {dtype, "q8_0", "float32"}
    assert written.dtypes["q8_0"] == 2 * 256 * 256
    ids = list(range(40))
    expected = logits(tmp_path / "exact", "smollm", ids)
    difference = np.abs(logits(tmp_path / "out.gguf", "smollm", ids) - expected)
    assert difference.max() < 0.1
    assert np.abs(expected - logits(base, "smollm", ids)).max() > 1


@pytest.mark.parametrize("name", PREFIXED)
def test_a_prefix(tmp_path: Path, name: str) -> None:
    folder = golden.folder(name)
    base = without_prefix(folder, tmp_path / "base")
    merge(base, folder, tmp_path / "out", dtype="float32")
    whole = load(tmp_path / "out", weights="float32", num_threads=1)
    assert whole.architecture == load(folder, num_threads=1).architecture
    params = SamplingParams(temperature=0, max_new_tokens=24, ignore_eos=True, logprobs=3)
    ((_, prompt),) = sequences(name)
    output = LLM(whole, max_model_len=128).generate([prompt], params)
    assert list(output[0].token_ids) == results(name)["greedy_ids"][0, -24:].tolist()
    official = LLM(load(folder, weights="float32", num_threads=1), max_model_len=128)
    assert answers(output) == answers(official.generate([prompt], params))
    with pytest.raises(InvalidParameterError, match="only the official layout"):
        merge(base, folder, tmp_path / "other", to="gguf")


def test_what_is_not_merged(tmp_path: Path) -> None:
    network = families.tiny_architecture("glm4")
    tensors = file_tensors("glm4", "native", network)
    base = adapters.write_base(tmp_path / "base", "glm4", "native", network, tensors)
    modules = random_modules(tensors, 4)
    silent = {name: (a, 0 * b) for name, (a, b) in modules.items()}
    with pytest.raises(InvalidParameterError, match="changes nothing"):
        merge(base, write_lora(tmp_path / "a", silent), tmp_path / "out", family="glm4")
    name, (a, b) = next(iter(modules.items()))
    large = {name: (a * np.float32(1e30), b * np.float32(1e30))}
    with pytest.raises(MalformedCheckpointError, match=r"layers.0.* beyond float32"):
        merge(base, write_lora(tmp_path / "c", large), tmp_path / "out", family="glm4")
    convert(base, tmp_path / "packed", "packed", family="glm4")
    folder = write_lora(tmp_path / "b", modules)
    with pytest.raises(InvalidParameterError, match="packed for the engine"):
        merge(tmp_path / "packed", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
