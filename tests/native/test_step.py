"""A step against the reference, on sizes that divide by nothing; and what is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimmer.architecture import Experts, Rope
from glimmer.errors import (
    GlimmerError,
    InvalidParameterError,
    MalformedCheckpointError,
    OutOfMemoryError,
    UnknownInstructionSetError,
    UnsupportedArchitectureError,
    UnsupportedTensorTypeError,
)
from glimmer.native import KVCache, NativeModel, StepInput, check_architecture
from glimmer.native.cpu import cpu_of_each_core
from glimmer.quantization import quantize
from tests.support.compare import ISAS, check_batch
from tests.support.reference import forward
from tests.support.tiny import (
    BLOCK,
    BLOCK_DTYPES,
    DTYPES,
    FLOAT_DTYPES,
    PLAIN,
    Floats,
    Ints,
    Stream,
    TinyModel,
    is_packed,
    make_cache,
    make_streams,
    random_architecture,
    random_experts,
    random_text,
    random_weights,
    run,
    seeded,
    step_input,
)

LONG_LENGTHS = (511, 512, 513, 1026)  # around the first and second cut of attention, at 512 keys

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "smallest": {
        **{"vocab_size": 1, "hidden_size": 1, "intermediate_size": 1, "num_layers": 1},
        **{"num_heads": 1, "num_kv_heads": 1, "head_dim": 2, "rope": Rope(dims=2, base=1e4)},
    },
    "chatglm": {  # half of each head turned in neighbouring pairs, 16 heads to a KV head
        **{"num_heads": 32, "num_kv_heads": 2, "head_dim": 16, "qkv_bias": True},
        "rope": Rope(dims=8, base=1e4),
    },
    "llama": {  # whole heads turned in halves, 3 heads to a KV head
        **{"num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "tied_head": True},
        "rope": Rope(dims=64, base=1e5, pairing="half"),
    },
    "one head to each": {
        **{"num_heads": 3, "num_kv_heads": 3, "head_dim": 10},
        "rope": Rope(dims=4, base=100.0, pairing="half", linear_scale=4.0),
    },
    "17 heads to each": {
        **{"num_heads": 34, "num_kv_heads": 2, "head_dim": 6, "hidden_size": 33},
        **{"qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
        "rope": Rope(dims=6, base=5e6),
    },
    "no rotary": {
        **{"num_heads": 5, "num_kv_heads": 1, "head_dim": 8, "rope": Rope(dims=0, base=1e4)}
    },
}


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_float_weights(shape: str, dtype: str) -> None:
    architecture = random_architecture(seeded(1), **{**PLAIN, **SHAPES[shape]})
    check_batch(TinyModel.random(architecture, [dtype]))


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("dtypes", [*([dtype] for dtype in BLOCK_DTYPES), DTYPES], ids=" ".join)
def test_block_weights(dtypes: Sequence[str], activations: str) -> None:
    for seed in range(3):
        architecture = random_architecture(seeded(seed), input_multiple=BLOCK)
        check_batch(TinyModel.random(architecture, dtypes, seed), activations)


@pytest.mark.parametrize("heads", [(5, 1), (3, 3)], ids=str)
def test_long_contexts(heads: tuple[int, int]) -> None:
    architecture = random_architecture(
        seeded(2), num_layers=1, num_heads=heads[0], num_kv_heads=heads[1], head_dim=8
    )
    check_batch(TinyModel.random(architecture), lengths=LONG_LENGTHS, chunk=300)


@settings(max_examples=25)
@given(st.data())
def test_any_architecture_and_batch(data: st.DataObject) -> None:
    def choose(options: Sequence[Any]) -> Any:
        return data.draw(st.sampled_from(options))

    dtypes = choose([FLOAT_DTYPES, BLOCK_DTYPES, DTYPES])
    architecture = random_architecture(
        choose, input_multiple=1 if dtypes is FLOAT_DTYPES else BLOCK
    )
    model = TinyModel.random(architecture, dtypes, seed=choose(range(100)))
    activations = choose(["int8", "int16"])
    lengths = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=8))
    check_batch(model, activations, lengths, chunk=choose([1, 5, 32, 70]))


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_product(dtype: str, activations: str) -> None:
    # Its inputs are the same to the last bits, so that even the rounded ones leave no doubt.
    rng = np.random.default_rng(0)
    for num_rows in (1, 15, 17, 70):
        head, embedding = rng.standard_normal((2, num_rows, 96)).astype(np.float32)
        model = product_model(head, embedding, dtype)
        tokens = [random_text(model.architecture, n, rng) for n in range(1, 10)]
        check_product(model, activations, tokens)


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("dtype", BLOCK_DTYPES)
def test_the_largest_sums_fit(dtype: str, activations: str) -> None:
    # Weights and inputs at the ends of their ranges, products all of one sign, or of both by turns.
    signs = np.ones((6, 64), np.float32)
    signs[1:3] = -1
    signs[2, ::32], signs[3, ::32] = 1, -1  # q4_1 has a range only where a block has two values
    signs[4, ::2], signs[5, 1::2] = -1, -1
    check_product(product_model(signs, signs, dtype), activations, [np.arange(6, dtype=np.int32)])


def product_model(head: Floats, embedding: Floats, dtype: str) -> TinyModel:
    """Nothing but ``head @ norm(embedding)``: the only layer adds zero."""
    vocab_size, hidden_size = head.shape
    architecture = random_architecture(
        seeded(0),
        **{**PLAIN, "vocab_size": vocab_size, "hidden_size": hidden_size, "num_layers": 1},
        tied_head=False,
    )
    weights = random_weights(architecture, 0)
    for name, weight in weights.items():
        if name.startswith(("layers.0.attn_out", "layers.0.mlp_down")):
            weight[:] = 0
    weights |= {"head.weight": head, "embedding.weight": embedding}
    weights["final_norm.weight"][:] = 1
    return TinyModel.of(architecture, weights, {"head.weight": dtype})


def check_product(model: TinyModel, activations: str, tokens: Sequence[Ints]) -> None:
    input_bits = model.input_bits(activations)
    # The steps of int16 are so small that many inputs lie on an edge, but that matters little.
    tolerance = 1e-3 if 16 in input_bits.values() else 5e-5  # of logits up to 30
    for isa in ISAS:
        engine = model.native(isa=isa, activations=activations)
        for token_ids in tokens:
            expected = forward(model.architecture, model.weights, token_ids, input_bits=input_bits)
            [logits] = run(engine, [token_ids])
            np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("target", DTYPES)
def test_weights_are_converted_as_the_schemes_say(target: str) -> None:
    architecture = random_architecture(
        seeded(3),
        input_multiple=BLOCK,
        **{**PLAIN, "prefix_length": 3, "experts": random_experts(seeded(3), [BLOCK])},
    )
    by_engine, by_scheme = NativeModel(architecture, 2), NativeModel(architecture, 2)
    for name, weight in random_weights(architecture, 0).items():
        stored, shape = weight.view(np.uint8), weight.shape
        by_engine.load(name, "float32", shape, stored, target)
        if is_packed(name, shape):
            by_scheme.load(name, target, shape, quantize(target, weight))
        else:
            by_scheme.load(name, "float32", shape, stored)
    tokens = [np.arange(3, dtype=np.int32) % architecture.vocab_size]
    by_engine.finish()
    by_scheme.finish()
    np.testing.assert_array_equal(run(by_engine, tokens), run(by_scheme, tokens))


def test_keys_and_values_beyond_float16_are_held_at_its_limit() -> None:
    architecture = random_architecture(seeded(4), **PLAIN, qkv_bias=True, num_layers=1)
    weights = random_weights(architecture, 0)
    weights["layers.0.attn_v.bias"][::2] = 1e6
    weights["layers.0.attn_v.bias"][1::2] = 4e4  # within: the norm would hide a common factor
    model = TinyModel.of(architecture, weights)
    token_ids = random_text(architecture, 40, np.random.default_rng(0))
    expected = forward(architecture, weights, token_ids, kv_dtype="float16")
    for isa in ISAS:
        [logits] = run(model.native(isa=isa), [token_ids])
        np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_only_the_wanted_rows_come_back() -> None:
    model = TinyModel.random(random_architecture(seeded(5)))
    engine = model.native()
    streams = make_streams(
        model.architecture, [random_text(model.architecture, 40, np.random.default_rng(0))]
    )
    step = step_input([(streams[0], 40)])
    every_row = engine.step(make_cache(engine, streams), step).logits
    assert every_row is not None
    for rows in ([], [39], [0, 7, 8, 31, 39]):
        wanted = replace(step, logit_rows=np.array(rows, np.int32))
        result = engine.step(make_cache(engine, streams), wanted)
        np.testing.assert_array_equal(result.logits, every_row[rows])
        assert result.token_ids.shape == (0,)
    assert (
        engine.step(make_cache(engine, streams), replace(step, return_logits=False)).logits is None
    )


def test_positions_may_be_given() -> None:
    # Rotary embeddings know distances alone: a common shift changes nothing, a stretch does.
    model = TinyModel.random(random_architecture(seeded(6), **PLAIN))
    engine = model.native()
    streams = make_streams(
        model.architecture, [random_text(model.architecture, 9, np.random.default_rng(0))]
    )

    def logits(positions: Ints | None) -> Floats:
        step = replace(step_input([(streams[0], 9)]), positions=positions)
        result = engine.step(make_cache(engine, streams, "float32"), step).logits
        assert result is not None
        return result

    counted, usual = np.arange(9, dtype=np.int32), logits(None)
    np.testing.assert_array_equal(logits(counted), usual)
    np.testing.assert_allclose(logits(counted + 50), usual, atol=1e-3)
    assert np.abs(logits(3 * counted) - usual).max() > 0.01


# --- what is refused


def experts(**choices: Any) -> dict[str, Any]:
    numbers: dict[str, Any] = {"num_experts": 6, "num_experts_per_token": 2}
    numbers |= {"num_shared_experts": 1, "intermediate_size": 8, "num_dense_layers": 0}
    return {"experts": Experts(**{**numbers, **choices})}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"num_heads": 4, "num_kv_heads": 3}, "4 heads cannot share 3 KV heads"),
        ({"hidden_size": 0}, "hidden_size must be above 0"),
        ({"head_dim": 8, "rope": Rope(dims=10, base=1e4)}, "10 of 8 channels"),
        ({"head_dim": 8, "rope": Rope(dims=3, base=1e4)}, "even number"),
        ({"rope": Rope(dims=2, base=0.0)}, "base must be above 0"),
        ({"rope": Rope(dims=2, base=1e4, linear_scale=0.0)}, "linear_scale must be above 0"),
        ({"head_dim": 8, "rope": Rope(dims=6, base=1e4, positions="2d")}, "6 of 4 .* each half"),
        ({"head_dim": 7, "rope": Rope(dims=2, base=1e4, positions="2d")}, "7 channels have no"),
        ({"residual": "input", "residual_scale": 2.0}, "residual_scale other than 1"),
        (experts(num_experts=0), "num_experts must be above 0"),
        (experts(num_experts_per_token=0), "num_experts_per_token must be above 0"),
        (experts(intermediate_size=0), "experts' intermediate_size must be above 0"),
        (experts(intermediate_size=2**30, num_shared_experts=2), "shared experts are 2 of"),
        (experts(num_groups=4), "6 experts cannot be divided into 4 groups"),
        (experts(num_groups=6), "6 groups have one expert each"),
        (experts(num_groups=3, num_groups_per_token=4), "is 4, but there are only 3 groups"),
        (experts(num_experts_per_token=7), "is 7, but a token can choose from 6"),
        (experts(num_groups=3, num_experts_per_token=3), "is 3, but a token can choose from 2"),
        ({"num_heads": 2**30, "num_kv_heads": 1, "head_dim": 8}, "more than this engine"),
    ],
)
def test_impossible_numbers(choices: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=message):
        check_architecture(random_architecture(seeded(0), **{**PLAIN, **choices}))


def test_weights_that_do_not_fit() -> None:
    architecture = random_architecture(seeded(0), **PLAIN, hidden_size=40, vocab_size=7)
    model = NativeModel(architecture, 1)
    zeros = np.zeros(4 * 7 * 40, np.uint8)

    def refuse(kind: type[GlimmerError], message: str, *weight: Any) -> None:
        with pytest.raises(kind, match=message):
            model.load(*weight)

    refuse(MalformedCheckpointError, "not part of", "lm_head.weight", "float32", (7, 40), zeros)
    name = "embedding.weight"
    refuse(MalformedCheckpointError, r"\[40, 7\].*\[7, 40\]", name, "float32", (40, 7), zeros)
    refuse(MalformedCheckpointError, "1116 bytes.*1120", name, "float32", (7, 40), zeros[:-4])
    refuse(MalformedCheckpointError, "blocks of 32", name, "q4_0", (7, 40), zeros[: 7 * 18])
    refuse(MalformedCheckpointError, "blocks of 32", name, "float32", (7, 40), zeros, "q8_0")
    refuse(UnsupportedTensorTypeError, "q2_k.*q4_1", name, "q2_k", (7, 40), zeros)
    refuse(UnsupportedTensorTypeError, "int3.*q4_1", name, "float32", (7, 40), zeros, "int3")
    model.load(name, "float32", (7, 40), zeros)
    refuse(MalformedCheckpointError, "twice", name, "float32", (7, 40), zeros)
    num_weights = len(architecture.weight_shapes())
    with pytest.raises(
        MalformedCheckpointError, match=f"{num_weights - 1} of {num_weights}.*final"
    ):
        model.finish()


def test_instruction_sets_are_forced_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = random_architecture(seeded(0))
    assert ISAS[0] == "scalar"
    monkeypatch.delenv("GLIMMER_ISA", raising=False)
    assert NativeModel(architecture).isa == ISAS[-1]
    monkeypatch.setenv("GLIMMER_ISA", "scalar")
    assert NativeModel(architecture).isa == "scalar"
    assert NativeModel(architecture, isa=ISAS[-1]).isa == ISAS[-1]
    monkeypatch.setenv("GLIMMER_ISA", "avx9000")
    with pytest.raises(UnknownInstructionSetError, match=r"avx9000.*scalar"):
        NativeModel(architecture)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads cannot be looked at")
def test_pinned_threads_stay_on_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = cpu_of_each_core()
    if len(cores) < 2:
        pytest.skip("one core")

    def pinned() -> list[set[int]]:
        found = [os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()]
        return [cpus for cpus in found if cpus == {cores[1]}]

    architecture = random_architecture(seeded(0))
    free = NativeModel(architecture, num_threads=2)
    assert not pinned()
    monkeypatch.setenv("GLIMMER_PIN", "1")
    fixed = NativeModel(architecture, num_threads=2)
    assert len(pinned()) == 1
    del free, fixed


def test_threads_and_blocks_have_limits() -> None:
    model = TinyModel.random(random_architecture(seeded(0))).native()
    for num_threads in (0, -1, 1 << 20):
        with pytest.raises(InvalidParameterError, match="num_threads"):
            NativeModel(model.architecture, num_threads)
    for num_blocks in (0, -1, 1 << 31):
        with pytest.raises(InvalidParameterError, match="num_blocks"):
            KVCache(model, num_blocks)
    with pytest.raises(OutOfMemoryError, match="MiB"):
        KVCache(model, (1 << 31) - 1)


def ints(*values: int) -> Ints:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": ints(1, 2, 7)}, r"token_ids\[2\] is 7"),
        ({"token_ids": ints(1, -1, 2)}, r"token_ids\[1\] is -1"),
        ({"token_ids": ints(1, 2)}, "add up to 3, but 2 tokens"),
        ({"query_lengths": ints(3, 0), "kv_lengths": ints(3, 40)}, r"query_lengths\[1\] is 0"),
        ({"query_lengths": ints(4, -1)}, r"query_lengths\[0\] is 4"),
        ({"query_lengths": ints(2**31 - 1, 2**31 - 1)}, "add up to 4294967294, but 3 tokens"),
        ({"query_lengths": ints(3)}, "kv_lengths must have shape"),
        ({"kv_lengths": ints(1, 40)}, r"kv_lengths\[0\] is 1"),
        ({"kv_lengths": ints(65, 40)}, r"kv_lengths\[0\] is 65.*64"),
        ({"block_tables": np.array([[0, -1], [4, 1]], np.int32)}, r"block_tables\[1, 0\] is 4"),
        ({"block_tables": np.array([[0, -1], [2, -1]], np.int32)}, r"block_tables\[1, 1\] is -1"),
        ({"block_tables": np.zeros((1, 2), np.int32)}, "block_tables must have shape"),
        ({"block_tables": np.zeros((2, 0), np.int32)}, r"kv_lengths\[0\] is 2"),
        ({"logit_rows": ints(0, 3)}, r"logit_rows\[1\] is 3"),
        ({"logit_rows": ints(-1)}, r"logit_rows\[0\] is -1"),
        ({"logit_rows": ints(1, 1)}, r"logit_rows\[1\] is 1"),
        ({"positions": ints(0, 1)}, "positions must have shape"),
        ({"positions": ints(0, 1, -4)}, r"positions\[2\] is -4"),
    ],
)
def test_steps_that_do_not_fit(change: Mapping[str, Any], message: str) -> None:
    model = TinyModel.random(random_architecture(seeded(0), **PLAIN, vocab_size=7)).native()
    cache = KVCache(model, 4)
    step = StepInput(
        token_ids=ints(1, 2, 3),
        query_lengths=ints(2, 1),
        kv_lengths=ints(2, 40),
        block_tables=np.array([[0, -1], [3, 1]], np.int32),
        logit_rows=ints(1, 2),
        return_logits=True,
    )
    before = model.step(cache, step).logits
    with pytest.raises(InvalidParameterError, match=message):
        model.step(cache, replace(step, **change))
    np.testing.assert_array_equal(model.step(cache, step).logits, before)


def test_a_cache_of_another_network_is_refused() -> None:
    model, other = (
        TinyModel.random(random_architecture(seeded(0), **PLAIN, head_dim=head_dim))
        for head_dim in (8, 16)
    )
    engine = model.native()
    step = step_input([(Stream(ints(1), ints(0)), 1)])
    with pytest.raises(InvalidParameterError, match="made for a network of other sizes"):
        engine.step(KVCache(other.native(), 1), step)
