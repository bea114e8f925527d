"""Every choice of an architecture, alone and with the others, against the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from glimmer.architecture import Architecture, Blanks, Experts, Rope
from glimmer.errors import InvalidParameterError, MalformedCheckpointError
from glimmer.native import KVCache, NativeModel, kv_block_bytes
from tests.support.compare import ISAS, check_batch
from tests.support.reference import Network, forward, route
from tests.support.tiny import (
    BLOCK,
    BLOCK_DTYPES,
    DTYPES,
    PLAIN,
    Ints,
    TinyModel,
    make_cache,
    make_streams,
    random_architecture,
    random_text,
    run,
    seeded,
    step_input,
)

BLANKS = Blanks(start_id=0, blank_ids=(2, 1))
EXPERTS = Experts(
    num_experts=6,
    num_experts_per_token=2,
    num_shared_experts=1,
    intermediate_size=2 * BLOCK,
    num_dense_layers=0,
)
CHOICES: Mapping[str, Mapping[str, Any]] = {
    "layer norm": {"norm": "layer"},
    "sandwich": {"norm_place": "sandwich"},
    "normed residual": {"residual": "normed", "residual_scale": 7.5},
    "normed residual in a sandwich": {"residual": "normed", "norm_place": "sandwich"},
    "gelu": {"mlp": "gelu_tanh", "mlp_bias": True},
    "qk norm": {"qk_norm": True},
    "2d": {"blanks": BLANKS, "rope": Rope(dims=8, base=1e4, positions="2d", pairing="half")},
    "2d, part of a half": {
        "blanks": BLANKS,
        "rope": Rope(dims=4, base=1e4, positions="2d", linear_scale=3.0),
    },
    "float16 frequencies": {"rope": Rope(dims=16, base=1e4, frequency_dtype="float16")},
    "context": {"mask": "prefix", "blanks": BLANKS},
    "prefix of one": {"prefix_length": 1},
    "prefix of a block": {"prefix_length": 32},
    "prefix of two cuts": {"prefix_length": 600},
    "experts": {"experts": EXPERTS},
    "experts without shared ones": {"experts": replace(EXPERTS, num_shared_experts=0)},
    "experts in groups": {
        "experts": replace(EXPERTS, num_groups=3, num_groups_per_token=2, num_dense_layers=1)
    },
    "all experts": {
        "experts": replace(EXPERTS, num_experts_per_token=6, normalize_weights=False),
        "mlp": "gelu_tanh",
    },
    "as ChatGLM-6B": {
        **{"norm": "layer", "residual": "normed", "residual_scale": 56**0.5, "mask": "prefix"},
        **{"blanks": BLANKS, "mlp": "gelu_tanh", "prefix_length": 8, "tied_head": True},
        **{"qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
        "rope": Rope(dims=8, base=1e4, positions="2d", pairing="half", frequency_dtype="float16"),
    },
    "as GLM-4.5": {
        **{"qk_norm": True, "qkv_bias": True, "num_layers": 3},
        "rope": Rope(dims=8, base=1e6, pairing="half"),
        "experts": replace(EXPERTS, num_dense_layers=1, routed_scale=2.5),
    },
}


def architecture_of(choice: str, seed: int = 0, **sizes: Any) -> Architecture:
    heads = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 16}
    return random_architecture(seeded(seed), **{**PLAIN, **heads, **sizes, **CHOICES[choice]})


@pytest.mark.parametrize("choice", CHOICES)
def test_float_weights(choice: str) -> None:
    for chunk in (None, 7):
        check_batch(TinyModel.random(architecture_of(choice, num_layers=2)), chunk=chunk)


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("choice", CHOICES)
def test_block_weights(choice: str, activations: str) -> None:
    architecture = architecture_of(choice, hidden_size=64, intermediate_size=96)
    for dtypes in (BLOCK_DTYPES, DTYPES):
        check_batch(TinyModel.random(architecture, dtypes), activations)


@pytest.mark.parametrize("choice", ["context", "prefix of two cuts", "as ChatGLM-6B"])
def test_long_contexts(choice: str) -> None:
    # Contexts end on either side of a cut of attention, at 512 keys.
    architecture = architecture_of(choice, num_layers=1)
    check_batch(TinyModel.random(architecture), lengths=(513, 900, 1030), chunk=300)


@pytest.mark.parametrize("seed", range(4))
def test_every_token_chooses_its_own_experts(seed: int) -> None:
    # By differences far larger than what float32 rounds away, or another seed would be needed.
    groups = {"num_groups": 2, "num_groups_per_token": 1} if seed % 2 else {}
    experts = replace(EXPERTS, num_experts=10, num_experts_per_token=1 + seed, **groups)
    architecture = replace(architecture_of("experts", seed, num_layers=1), experts=experts)
    model = TinyModel.random(architecture, seed=seed, experts_by_token=True)
    check_batch(model, lengths=(1, 6, 70), kv_dtypes=("float32",))
    network = Network(architecture, model.weights, "float64", {})
    x = network.norm("layers.0.mlp_norm", network.w["embedding.weight"])
    bias = network.w["layers.0.router.bias"]
    chosen = route(experts, x @ network.w["layers.0.router.weight"].T, bias) > 0
    assert (chosen.sum(axis=1) == experts.num_experts_per_token).all()
    assert len(np.unique(chosen, axis=0)) > 3


def test_the_router_stays_exact_whatever_the_weights_become() -> None:
    architecture = architecture_of("experts", num_layers=1)
    model = TinyModel.random(architecture, experts_by_token=True)
    engines = [NativeModel(architecture, 1) for _ in range(2)]
    for name, shape in architecture.weight_shapes().items():
        target = "bfloat16" if "router" in name else None
        for engine, to in zip(engines, (None, target), strict=True):
            engine.load(name, model.dtypes[name], shape, model.stored[name], to)
    token_ids = random_text(architecture, 40, np.random.default_rng(0))
    results = []
    for engine in engines:
        engine.finish()
        results.append(run(engine, [token_ids])[0])
    np.testing.assert_array_equal(*results)


def test_last_rows_may_be_chosen() -> None:
    for choice in CHOICES:
        model = TinyModel.random(architecture_of(choice))
        text = random_text(model.architecture, 40, np.random.default_rng(0))
        for isa in ISAS:
            engine = model.native(isa=isa, num_threads=2)
            streams = make_streams(model.architecture, [text])
            step = step_input([(streams[0], 40)])
            every_row = engine.step(make_cache(engine, streams), step).logits
            assert every_row is not None
            for rows in ([], [39], [0, 7, 8, 31, 39]):
                wanted = replace(step, logit_rows=np.array(rows, np.int32))
                logits = engine.step(make_cache(engine, streams), wanted).logits
                np.testing.assert_array_equal(logits, every_row[rows])


# --- contexts and positions


def test_a_context_sees_what_follows_and_an_answer_does_not() -> None:
    model = TinyModel.random(architecture_of("context"))
    text = np.array([1, 3, 3, 0, 3, 3], np.int32)  # the context is that before token 0
    later, last = text.copy(), text.copy()
    later[2], last[5] = 2, 2
    engine = model.native()
    [usual], [other_context], [other_answer] = (run(engine, [x]) for x in (text, later, last))
    assert (usual[:2] != other_context[:2]).any()
    np.testing.assert_array_equal(usual[:5], other_answer[:5])


def test_a_context_comes_in_one_step() -> None:
    model = TinyModel.random(architecture_of("context"))
    engine = model.native()
    streams = make_streams(model.architecture, [np.array([1, 3, 3, 0, 3], np.int32)])
    cache = make_cache(engine, streams)
    with pytest.raises(InvalidParameterError, match=r"context_lengths\[0\] is 3.*0 to 1 only"):
        engine.step(cache, step_input([(streams[0], 2)]))
    for n in (3, 1, 1):
        engine.step(cache, step_input([(streams[0], n)]))
        streams[0].num_computed += n


def ints(*values: int) -> Ints:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("choice", "change", "message"),
    [
        ("context", {"context_lengths": None}, "context_lengths must be given.*mask"),
        ("context", {"context_lengths": ints(-1)}, r"context_lengths\[0\] is -1"),
        ("context", {"context_lengths": ints(1, 1)}, "context_lengths must have shape"),
        ("context", {"context_lengths": ints(4)}, r"context_lengths\[0\] is 4"),
        ("2d", {"context_lengths": ints(1)}, "context_lengths cannot be given.*causal"),
        ("2d", {"block_positions": None}, "block_positions must be given.*2d"),
        ("2d", {"block_positions": ints(0, 1)}, "block_positions must have shape"),
        ("2d", {"block_positions": ints(0, -1, 2)}, r"block_positions\[1\] is -1"),
        ("gelu", {"block_positions": ints(0, 1, 2)}, "block_positions cannot be given.*1d"),
    ],
)
def test_steps_that_do_not_fit(choice: str, change: Mapping[str, Any], message: str) -> None:
    model = TinyModel.random(architecture_of(choice))
    engine = model.native()
    streams = make_streams(model.architecture, [ints(1, 0, 3)])
    step = step_input([(streams[0], 3)])
    engine.step(make_cache(engine, streams), step)
    with pytest.raises(InvalidParameterError, match=message):
        engine.step(make_cache(engine, streams), replace(step, **change))


# --- trained prefixes


def test_a_prefix_has_blocks_of_its_own() -> None:
    model = TinyModel.random(architecture_of("prefix of two cuts"))
    engine = model.native()
    cache = KVCache(engine, 3)
    assert cache.num_blocks == 3
    assert cache.size_bytes == (3 + 19) * kv_block_bytes(model.architecture)
    streams = make_streams(model.architecture, [ints(1, 2, 3)])
    streams[0].block_table[0] = 3
    with pytest.raises(InvalidParameterError, match="blocks 0 to 2"):
        engine.step(cache, step_input([(streams[0], 3)]))


def test_a_cache_needs_the_prefix() -> None:
    with pytest.raises(MalformedCheckpointError, match="weights are missing"):
        KVCache(NativeModel(architecture_of("prefix of one"), 1), 1)


def test_a_cache_of_another_prefix_is_refused() -> None:
    one, block = (
        TinyModel.random(architecture_of(name)).native()
        for name in ("prefix of one", "prefix of a block")
    )
    streams = make_streams(one.architecture, [ints(1, 2, 3)])
    with pytest.raises(InvalidParameterError, match="made for a network of other sizes"):
        one.step(make_cache(block, streams), step_input([(streams[0], 3)]))


def test_prefixes_beyond_float16_are_held_at_its_limit() -> None:
    architecture = architecture_of("prefix of one", num_layers=1)
    model = TinyModel.random(architecture)
    model.weights["layers.0.prefix_values.weight"][:, ::2] = 1e6
    model.weights["layers.0.prefix_values.weight"][:, 1::2] = 4e4
    model = TinyModel.of(architecture, model.weights)
    token_ids = random_text(architecture, 5, np.random.default_rng(0))
    expected = forward(architecture, model.weights, token_ids, kv_dtype="float16")
    for isa in ISAS:
        [logits] = run(model.native(isa=isa), [token_ids])
        np.testing.assert_allclose(logits, expected, atol=1e-3)
