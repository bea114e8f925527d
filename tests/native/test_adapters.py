"""Adapters in the core: against the reference, and the same bits in any company."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from glimmer.architecture import Architecture, Blanks, Experts, Rope
from glimmer.errors import (
    InvalidParameterError,
    MalformedCheckpointError,
    UnsupportedArchitectureError,
)
from glimmer.native import KVCache, KVPrefix, Lora, NativeModel, instruction_sets
from tests.support.adapters import random_low_rank, random_prefix
from tests.support.compare import allowed_differences
from tests.support.reference import forward
from tests.support.tiny import (
    BLOCK,
    BLOCK_DTYPES,
    PLAIN,
    Floats,
    Ints,
    KVDType,
    Stream,
    TinyModel,
    encode,
    make_cache,
    make_streams,
    random_architecture,
    random_text,
    seeded,
    step_input,
)

ISAS = instruction_sets()
LENGTHS = (1, 3, 33, 70, 5, 40)
BLANKS = Blanks(start_id=0, blank_ids=(2, 1))
CHOICES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "tied head": {"tied_head": True},
    "sandwich, biases": {"norm_place": "sandwich", "qkv_bias": True, "mlp_bias": True},
    "as ChatGLM-6B": {
        **{"norm": "layer", "residual": "normed", "residual_scale": 56**0.5, "mask": "prefix"},
        **{"blanks": BLANKS, "mlp": "gelu_tanh", "tied_head": True, "num_kv_heads": 6},
        **{"qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
        "rope": Rope(dims=8, base=1e4, positions="2d", pairing="half", frequency_dtype="float16"),
    },
    "experts behind a dense layer": {
        "experts": Experts(
            num_experts=4,
            num_experts_per_token=2,
            num_shared_experts=1,
            intermediate_size=BLOCK,
            num_dense_layers=1,
        ),
    },
}


def architecture_of(choice: str, **sizes: Any) -> Architecture:
    common = {"num_layers": 2, "num_heads": 6, "num_kv_heads": 2, "head_dim": 16}
    return random_architecture(seeded(0), **{**PLAIN, **common, **sizes, **CHOICES[choice]})


def run(
    engine: NativeModel,
    sequences: Sequence[Ints],
    loras: Sequence[Lora | None] = (),
    prefixes: Sequence[KVPrefix | None] = (),
    *,
    chunk: int | None = None,
    kv_dtype: KVDType = "float16",
    seed: int = 0,
) -> list[Floats]:
    """Logits of each sequence, with its adapter, ``chunk`` tokens of it per step."""
    streams = make_streams(engine.architecture, sequences, seed)
    cache = make_cache(engine, streams, kv_dtype)
    logits: list[list[Floats]] = [[] for _ in streams]
    while unfinished := [i for i, stream in enumerate(streams) if stream.num_left]:
        parts = [streams[i].next_part(chunk or streams[i].num_left) for i in unfinished]
        pieces = advance(engine, cache, parts, unfinished, loras, prefixes)
        for i, piece in zip(unfinished, pieces, strict=True):
            logits[i].append(piece)
    return [np.concatenate(pieces) for pieces in logits]


def advance(
    engine: NativeModel,
    cache: KVCache,
    parts: Sequence[tuple[Stream, int]],
    numbers: Sequence[int],
    loras: Sequence[Lora | None],
    prefixes: Sequence[KVPrefix | None],
) -> list[Floats]:
    step = replace(
        step_input(parts),
        loras=[loras[i] for i in numbers] if loras else (),
        prefixes=[prefixes[i] for i in numbers] if prefixes else (),
    )
    result = engine.step(cache, step)
    for stream, n in parts:
        stream.num_computed += n
    assert result.logits is not None
    return np.split(result.logits, np.cumsum([n for _, n in parts])[:-1])


def texts(architecture: Architecture, lengths: Sequence[int] = LENGTHS) -> list[Ints]:
    rng = np.random.default_rng(0)
    return [random_text(architecture, n, rng) for n in lengths]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtypes", [("float32",), BLOCK_DTYPES], ids=" ".join)
def test_against_the_reference(choice: str, dtypes: Sequence[str]) -> None:
    """Two adapters and none in one batch; ranks that fill a strip of 16, and do not."""
    architecture = architecture_of(choice, hidden_size=64, intermediate_size=96)
    model = TinyModel.random(architecture, dtypes)
    given = [
        None,
        random_low_rank(architecture, 5, 1),
        random_low_rank(architecture, 20, 2, linears=("attn_q", "attn_v", "mlp_down")),
    ]
    sequences = texts(architecture)
    input_bits = model.input_bits("int16")
    expected = [
        forward(
            architecture,
            model.weights,
            text,
            kv_dtype="float32",
            input_bits=input_bits,
            low_rank=given[i % 3] or {},
        )
        for i, text in enumerate(sequences)
    ]
    plain = [
        forward(architecture, model.weights, text, kv_dtype="float32", input_bits=input_bits)
        for text in sequences
    ]
    largest, median = allowed_differences(input_bits, "float32")
    results = []
    for isa in ISAS:
        engine = model.native(isa=isa, activations="int16")
        loras = [None if parts is None else Lora(engine, parts) for parts in given]
        chosen = [loras[i % 3] for i in range(len(sequences))]
        results.append(run(engine, sequences, chosen, kv_dtype="float32", chunk=7))
    for logits, wanted, without in zip(results[0], expected, plain, strict=True):
        difference = np.abs(logits - wanted)
        assert difference.max() <= 4 * largest
        assert np.median(difference) <= 4 * median
        changed = np.abs(wanted - without).max()
        assert changed == 0 or changed > 100 * difference.max()
    for result in results[1:]:
        for logits, scalar in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(logits, scalar)


@pytest.mark.parametrize("choice", CHOICES)
def test_company_threads_and_chunks_change_no_bit(choice: str) -> None:
    architecture = architecture_of(choice, hidden_size=64, intermediate_size=96)
    model = TinyModel.random(architecture, ("float32", "q4_0", "q8_0"))
    engine = model.native()
    parts = [random_low_rank(architecture, 8, 1), random_low_rank(architecture, 3, 2)]
    sequences = texts(architecture)
    kinds = [None, 0, 1, 0, None, 1]

    def loras_of(engine: NativeModel) -> list[Lora | None]:
        made = [Lora(engine, p) for p in parts]
        return [None if kind is None else made[kind] for kind in kinds]

    chosen = loras_of(engine)
    alone = [run(engine, [text], [lora])[0] for text, lora in zip(sequences, chosen, strict=True)]
    # Without an adapter: the bits of a batch in which nobody has one.
    for text, lora, logits in zip(sequences, chosen, alone, strict=True):
        if lora is None:
            np.testing.assert_array_equal(run(engine, [text])[0], logits)
        else:
            assert (run(engine, [text])[0] != logits).any()
    for num_threads in (1, 2, 3):
        other = model.native(num_threads=num_threads)
        loras = loras_of(other)
        for chunk in (None, 1, 4, 50):
            result = run(other, sequences, loras, chunk=chunk, seed=num_threads)
            for logits, wanted in zip(result, alone, strict=True):
                np.testing.assert_array_equal(logits, wanted)


def test_any_schedule() -> None:
    """Each step another company in another order, prompts beside answers."""
    architecture = architecture_of("plain", hidden_size=64, intermediate_size=96)
    model = TinyModel.random(architecture, ("q4_0",))
    engine, rng = model.native(num_threads=2), random.Random(1)
    sequences = texts(architecture, (40, 70, 33, 90, 64, 5, 50, 20))
    made = [Lora(engine, random_low_rank(architecture, r, r)) for r in (2, 17)]
    chosen = [rng.choice([None, *made]) for _ in sequences]
    prefix = KVPrefix(engine, random_prefix(architecture, 9))
    prefixes = [rng.choice([None, prefix]) for _ in sequences]
    alone = [
        run(engine, [text], [lora], [p])[0]
        for text, lora, p in zip(sequences, chosen, prefixes, strict=True)
    ]
    streams = make_streams(architecture, sequences)
    cache = make_cache(engine, streams)
    while unfinished := [i for i, s in enumerate(streams) if s.num_left]:
        company = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        parts = [streams[i].next_part(rng.choice([1, 1, 2, 4, 5, 16, 65])) for i in company]
        firsts = [streams[i].num_computed for i in company]
        pieces = advance(engine, cache, parts, company, chosen, prefixes)
        for i, first, piece in zip(company, firsts, pieces, strict=True):
            np.testing.assert_array_equal(piece, alone[i][first : first + len(piece)])


def test_parts_that_share_their_a() -> None:
    """The same bits as with an A of each one's own."""
    architecture = architecture_of("plain", hidden_size=64, intermediate_size=96)
    engine = TinyModel.random(architecture).native()
    shared = random_low_rank(architecture, 6, shared_inputs=True)
    apart = {name: (a.copy(), b, scale) for name, (a, b, scale) in shared.items()}
    sequences = texts(architecture)
    both = [Lora(engine, parts) for parts in (shared, apart)]
    results = [run(engine, sequences, [lora] * len(sequences)) for lora in both]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    assert both[0].size_bytes < both[1].size_bytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_that_fit_half_precision_are_kept_in_it(dtype: str) -> None:
    """To the same bits: one value that does not fit keeps the matrix in float32."""
    architecture = architecture_of("plain", hidden_size=64, intermediate_size=96)
    model = TinyModel.random(architecture)
    narrow = {
        name: (encode(dtype, a)[1], encode(dtype, b)[1], scale)
        for name, (a, b, scale) in random_low_rank(architecture, 17).items()
    }
    # A row of A more, of which nothing comes: its values are odd, and what they meet is zero.
    odd = np.float32(1 + 2**-20)
    wide = {}
    for name, (a, b, scale) in narrow.items():
        more_a = np.concatenate([a, np.full((1, a.shape[1]), odd)])
        more_b = np.concatenate([b, np.zeros((len(b), 1), np.float32)], axis=1)
        wide[name] = (more_a, more_b, scale)
    sequences = texts(architecture)
    expected = [
        forward(architecture, model.weights, text, kv_dtype="float32", low_rank=narrow)
        for text in sequences
    ]
    for isa in ISAS:
        engine = model.native(isa=isa)
        small, large = Lora(engine, narrow), Lora(engine, wide)
        results = [
            run(engine, sequences, [lora] * len(sequences), kv_dtype="float32")
            for lora in (small, large)
        ]
        for logits, other, wanted in zip(*results, expected, strict=True):
            np.testing.assert_array_equal(logits, other)
            np.testing.assert_allclose(logits, wanted, atol=5e-4)
        assert small.size_bytes < 0.75 * large.size_bytes


def test_last_rows_may_be_chosen() -> None:
    architecture = architecture_of("plain")
    engine = TinyModel.random(architecture).native(num_threads=2)
    lora = Lora(engine, random_low_rank(architecture, 4))
    (text,) = texts(architecture, (40,))
    (every,) = run(engine, [text], [lora])
    for rows in ([], [39], [0, 7, 8, 31, 39]):
        streams = make_streams(architecture, [text])
        step = replace(
            step_input([(streams[0], 40)]), loras=[lora], logit_rows=np.array(rows, np.int32)
        )
        logits = engine.step(make_cache(engine, streams), step).logits
        np.testing.assert_array_equal(logits, every[rows])


def test_what_does_not_fit_is_named() -> None:
    architecture = architecture_of("experts behind a dense layer")
    engine = TinyModel.random(architecture).native()
    good = random_low_rank(architecture, 4)
    a, b, scale = good["layers.0.attn_q"]
    for parts, message in (
        ({"layers.9.attn_q": (a, b, scale)}, "layers.9.attn_q.*no linear"),
        ({"layers.0.attn_norm": (a, b, scale)}, "no linear"),
        ({"layers.0.attn_q": (a[:, 1:], b, scale)}, "an A of"),
        ({"layers.0.attn_q": (a, b[1:], scale)}, "a B of"),
    ):
        with pytest.raises(MalformedCheckpointError, match=message):
            Lora(engine, parts)
    with pytest.raises(InvalidParameterError, match=r"\[rank, in\]"):
        Lora(engine, {"layers.0.attn_q": (a[1:], b, scale)})
    with pytest.raises(UnsupportedArchitectureError, match=r"experts.0.mlp_up.*glimmer merge"):
        Lora(engine, {"layers.1.experts.0.mlp_up": (a, b, scale)})


def test_a_step_takes_adapters_of_its_own_network_alone() -> None:
    architecture = architecture_of("plain")
    engine = TinyModel.random(architecture).native()
    other = TinyModel.random(replace(architecture, num_layers=1)).native()
    streams = make_streams(architecture, texts(architecture, (5,)))
    step = step_input([(streams[0], 5)])
    cache = make_cache(engine, streams)
    lora = Lora(other, random_low_rank(other.architecture, 2))
    with pytest.raises(InvalidParameterError, match=r"loras\[0\].*other sizes"):
        engine.step(cache, replace(step, loras=[lora]))
    with pytest.raises(InvalidParameterError, match="loras must be empty"):
        engine.step(cache, replace(step, loras=[None, None]))
    prefix = KVPrefix(other, random_prefix(other.architecture, 2))
    with pytest.raises(InvalidParameterError, match=r"prefixes\[0\].*other sizes"):
        engine.step(cache, replace(step, prefixes=[prefix]))
    prefix = KVPrefix(engine, random_prefix(architecture, 2), "int8")
    with pytest.raises(InvalidParameterError, match=r"prefixes\[0\].*another type"):
        engine.step(cache, replace(step, prefixes=[prefix]))
    with pytest.raises(InvalidParameterError, match="shape"):
        KVPrefix(engine, random_prefix(architecture, 2)[:, :1])
    with pytest.raises(InvalidParameterError, match="shape"):
        KVPrefix(engine, random_prefix(architecture, 0))


# --- prefixes


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("choice", ["plain", "as ChatGLM-6B"])
@pytest.mark.parametrize("length", [1, 32, 40, 600])
def test_a_prefix_of_a_sequence_is_as_one_of_the_network(
    choice: str, length: int, kv_dtype: KVDType
) -> None:
    """To the bit; and who has none, beside it, is as alone."""
    architecture = architecture_of(choice)
    values = random_prefix(architecture, length)
    model = TinyModel.random(architecture)
    weights = dict(model.weights)
    for n in range(architecture.num_layers):
        weights[f"layers.{n}.prefix_keys.weight"] = values[:, n, 0]
        weights[f"layers.{n}.prefix_values.weight"] = values[:, n, 1]
    own = replace(architecture, prefix_length=length)
    prefixed = TinyModel.of(own, {name: weights[name] for name in own.weight_shapes()}).native()
    engine = TinyModel.of(architecture, model.weights).native(num_threads=2)
    sequences = texts(architecture)
    prefix = KVPrefix(engine, values, kv_dtype)
    assert prefix.length == length
    chosen = [prefix, None, prefix, None, prefix, prefix]
    expected = run(prefixed, sequences, kv_dtype=kv_dtype)
    plain = run(engine, sequences, kv_dtype=kv_dtype)
    for chunk in (None, 3):
        result = run(engine, sequences, (), chosen, kv_dtype=kv_dtype, chunk=chunk)
        for i, logits in enumerate(result):
            wanted = expected[i] if chosen[i] else plain[i]
            np.testing.assert_array_equal(logits, wanted)


def test_a_network_with_a_prefix_takes_no_other() -> None:
    architecture = architecture_of("plain", prefix_length=3)
    engine = TinyModel.random(architecture).native()
    streams = make_streams(architecture, texts(architecture, (5,)))
    prefix = KVPrefix(engine, random_prefix(architecture, 2))
    step = replace(step_input([(streams[0], 5)]), prefixes=[prefix])
    with pytest.raises(InvalidParameterError, match="a trained prefix already"):
        engine.step(make_cache(engine, streams), step)
