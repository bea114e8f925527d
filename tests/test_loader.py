"""Loading: what is taken, converted, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import glimmer
from glimmer import loader, native
from glimmer.errors import (
    GlimmerError,
    InvalidParameterError,
    MalformedCheckpointError,
    ModelNotFoundError,
    OutOfMemoryError,
    TokenizerError,
    UnknownFamilyError,
    UnknownFormatError,
    UnsupportedArchitectureError,
    UnsupportedTensorTypeError,
)
from tests.support.reference import forward
from tests.support.tiny import encode, random_weights
from tests.support.tiny_gguf import tiny_architecture, tiny_gguf

DTYPES = ["float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_1"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_equal_the_reference(tmp_path: Path, dtype: str) -> None:
    model = glimmer.load(tiny_gguf(tmp_path / "tiny.gguf", dtype), activations="int16")
    architecture = tiny_architecture()
    weights = {
        name: encode(dtype, w)[1] if w.ndim == 2 else w
        for name, w in random_weights(architecture, 0).items()
    }
    ids = np.random.default_rng(1).integers(0, architecture.vocab_size, 300) % 400
    ids = ids[:250].astype(np.int32)  # several chunks of one step, several blocks
    expected = forward(architecture, weights, ids)
    np.testing.assert_allclose(model.logits(list(ids)), expected, atol=2e-2)
    assert model.family == "smollm"
    assert model.name == "tiny"


@pytest.mark.parametrize("weights", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_conversion_at_load(tmp_path: Path, weights: Any) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", "float32")
    exact = glimmer.load(path).logits([1, 2, 3, 4])
    converted = glimmer.load(path, weights=weights).logits([1, 2, 3, 4])
    tolerance = {"float32": 5e-3, "float16": 0.05, "bfloat16": 0.2, "int8": 0.2, "int4": 3.0}
    assert np.abs(converted - exact).max() < tolerance[weights]


def test_small_models_use_exact_activations(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", "q4_0")
    auto, wide, narrow = (
        glimmer.load(path, activations=a).logits([5, 6, 7])
        for a in ("auto", "int16", "int8")  # type: ignore[arg-type]
    )
    assert np.array_equal(auto, wide)
    assert not np.array_equal(auto, narrow)


def test_a_file_without_tokenizer_runs_for_ids(tmp_path: Path) -> None:
    from tests.support.tiny_bpe import tiny_bpe_metadata

    path = tiny_gguf(tmp_path / "tiny.gguf", metadata=dict.fromkeys(tiny_bpe_metadata()))
    with pytest.raises(UnknownFamilyError, match="architecture = 'llama'"):
        glimmer.load(path)
    model = glimmer.load(path, family="smollm")
    assert model.logits([1, 2]).shape == (2, model.architecture.vocab_size)
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        _ = model.tokenizer
    outputs = glimmer.LLM(model).generate([[1, 2, 3]], glimmer.SamplingParams(max_new_tokens=4))
    assert len(outputs[0].token_ids) == 4
    assert outputs[0].text == ""


def refused(error: type[GlimmerError], parts: list[str], path: Path, **options: Any) -> None:
    with pytest.raises(error) as caught:
        glimmer.load(path, **options)
    for part in parts:
        assert part in str(caught.value)


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    refused(ModelNotFoundError, ["no/such.gguf", "glimmer list"], Path("no/such.gguf"))
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(UnknownFormatError, ["m.gguf", "config.json"], path)
    refused(UnknownFormatError, [str(tmp_path)], tmp_path)
    tiny_gguf(path, metadata={"general.architecture": "mamba"})
    refused(UnknownFamilyError, ["mamba", "smollm", "--family"], path)
    tiny_gguf(path, metadata={"llama.block_count": None})
    refused(MalformedCheckpointError, ["llama.block_count"], path)
    tiny_gguf(path, metadata={"llama.embedding_length": "big"})
    refused(MalformedCheckpointError, ["llama.embedding_length", "big"], path)
    tiny_gguf(path, metadata={"llama.feed_forward_length": 97})
    refused(MalformedCheckpointError, ["blk.0.ffn_gate.weight", "[96, 64]", "[97, 64]"], path)
    tiny_gguf(path, tensors={"blk.1.attn_k.weight": None})  # type: ignore[dict-item]
    refused(MalformedCheckpointError, ["blk.1.attn_k.weight", "incomplete"], path)
    q2 = ("q2_k", (96, 256), bytes(96 * 84))
    tiny_gguf(path, hidden_size=256, head_dim=64, tensors={"blk.0.ffn_up.weight": q2})
    refused(UnsupportedTensorTypeError, ["blk.0.ffn_up.weight", "q2_k", "q4_1"], path)
    tiny_gguf(path, metadata={"llama.block_count": 2**32 - 1})
    refused(MalformedCheckpointError, ["4294967295 layers", "20 tensors"], path)
    tiny_gguf(path, metadata={"llama.rope.dimension_count": 2**31})
    refused(UnsupportedArchitectureError, ["rope dims", "2147483648"], path)
    tiny_gguf(path, metadata={"llama.attention.head_count_kv": 3})
    refused(GlimmerError, ["3"], path)
    tiny_gguf(path)
    refused(InvalidParameterError, ["int3", "auto"], path, weights="int3")
    refused(InvalidParameterError, ["gpt", "smollm"], path, family="gpt")
    refused(InvalidParameterError, ["num_threads", "0"], path, num_threads=0)


def damage_and_load(path: Path, whole: bytes, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(whole)
    for position, value in flips:
        damaged[position % len(damaged)] = value
    path.write_bytes(damaged)
    try:
        model = glimmer.load(path)
        assert model.logits([1, 2, 3]).shape == (3, model.architecture.vocab_size)
        if model.has_tokenizer:
            model.chat_template.encode([{"role": "user", "content": "Hello"}])
    except GlimmerError:
        pass  # refused, which is what a damaged file deserves


# The numbers of the network stand in the first 800 bytes, the tensor table in the last kilobytes
# before the data; most bytes between are the text of tokens.
_FLIPS = st.lists(st.tuples(st.integers(0, 800), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=60)
@given(_FLIPS)
def test_damaged_numbers_are_refused_or_run(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    whole = tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    damage_and_load(tmp_path / "m.gguf", whole, flips)


@pytest.mark.slow
@settings(max_examples=3000)
@given(
    st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=20)
    | _FLIPS
)
def test_damaged_anywhere(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    whole = tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    damage_and_load(tmp_path / "m.gguf", whole, flips)


def test_an_unbuilt_choice_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="residual_scale"):
        native.check_architecture(tiny_architecture(residual_scale=2.0))


def test_weights_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(loader, "available_memory", lambda: 1000)
    refused(OutOfMemoryError, ["GiB are free", "int4"], path)


def test_logits_refuses_what_is_no_sequence(tmp_path: Path) -> None:
    model = glimmer.load(tiny_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(InvalidParameterError, match="at least one token"):
        model.logits([])
    with pytest.raises(InvalidParameterError, match=r"token_ids\[1\] is 99999"):
        model.logits([1, 99999])


@pytest.mark.parametrize("length", [1, 40, 64, 150])
def test_an_embedding_is_the_mean_of_all_tokens(tmp_path: Path, length: int) -> None:
    model = glimmer.load(tiny_gguf(tmp_path / "tiny.gguf", "float32"), weights="float32")
    ids = np.random.default_rng(2).integers(0, 400, length).tolist()
    states = model.trace(ids)[1][-1].astype(np.float64)
    states /= np.sqrt(np.mean(np.square(states), axis=1, keepdims=True))
    mean = states.mean(axis=0)
    np.testing.assert_allclose(model.embed(ids), mean / np.linalg.norm(mean), atol=1e-6)


def test_inspect(tmp_path: Path) -> None:
    summary = glimmer.inspect(tiny_gguf(tmp_path / "a.gguf"))
    assert summary.runnable
    assert summary.family == "smollm"
    assert set(summary.weights_bytes_by_dtype) == {"float32", "q4_0"}
    assert summary.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    strange = glimmer.inspect(
        tiny_gguf(tmp_path / "b.gguf", metadata={"general.architecture": "x"})
    )
    assert not strange.runnable
    assert strange.family is None
    assert "No family" in (strange.why_not or "")


def test_inspect_a_file_that_claims_billions_of_layers(tmp_path: Path) -> None:
    summary = glimmer.inspect(
        tiny_gguf(tmp_path / "a.gguf", metadata={"llama.block_count": 2**32 - 1})
    )
    assert not summary.runnable
    assert summary.architecture is not None
    assert summary.architecture.num_parameters > 2**32


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_parameters_are_counted(num_layers: int) -> None:
    architecture = tiny_architecture(num_layers=num_layers, qkv_bias=True, tied_head=False)
    shapes = architecture.weight_shapes().values()
    assert architecture.num_parameters == sum(int(np.prod(shape)) for shape in shapes)
