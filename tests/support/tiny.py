"""Random models of a few thousand weights, in every stored form, for the reference and the engine.

The stored forms are written from GGML's description of its blocks, not from Glimmer's own code:
this is the second opinion.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from glimmer.architecture import Architecture, Blanks, Experts, Rope, TextLayout
from glimmer.native import BLOCK_SIZE, KVCache, NativeModel, SamplingInput, StepInput

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
KVDType = Literal["float16", "float32", "int8"]
T = TypeVar("T")

FLOAT_DTYPES = ("float32", "float16", "bfloat16")
BLOCK_DTYPES = ("q8_0", "q4_0", "q4_1")
DTYPES = FLOAT_DTYPES + BLOCK_DTYPES
BLOCK = 32
"""Weights per block of ``BLOCK_DTYPES``."""
READ_DTYPES = ("q5_0", "q5_1")
"""Blocks of 32 that are read and not written."""
K_DTYPES = ("q4_k", "q5_k", "q6_k")
K_BLOCK = 256
"""Weights per block of ``K_DTYPES``."""
PREFIX_NAMES = ("prefix_keys.weight", "prefix_values.weight")
MAX_WIDTH = 512
"""Of all query heads together, so that the reference stays quick."""

PLAIN: Mapping[str, Any] = {
    **{"norm": "rms", "norm_place": "pre", "residual": "input", "residual_scale": 1.0},
    **{"mask": "causal", "blanks": None, "mlp": "swiglu", "qk_norm": False, "experts": None},
    **{"prefix_length": 0, "rope": Rope(dims=2, base=1e4)},
}
"""The choices of most networks, to be given where others would be drawn."""


class Choose(Protocol):
    """Picks one of the options: ``seeded(...)``, or what a property test draws."""

    def __call__(self, options: Sequence[T], /) -> T: ...


def seeded(seed: int) -> Choose:
    return random.Random(seed).choice


def random_architecture(choose: Choose, *, input_multiple: int = 1, **choices: Any) -> Architecture:
    """Small, and odd in every way that the engine runs; ``choices`` are taken as given.

    The inputs of every matrix are a multiple of ``input_multiple`` (1 or ``BLOCK``).
    """
    sizes = [n for n in range(5, 100) if n % input_multiple == 0]
    head_dim = choices.get("head_dim") or choose([2, 6, 8, 10, 16, 24, 64])
    # 16 heads of an even width always fill whole blocks.
    num_heads, num_kv_heads = choose(
        [
            (group * kv, kv)
            for group in (1, 2, 3, 5, 16, 17)
            for kv in (1, 2, 3)
            if (width := group * kv * head_dim) % input_multiple == 0 and width <= MAX_WIDTH
        ]
    )
    rope = choices.get("rope") or random_rope(choose, head_dim)
    mask = choices.get("mask") or choose(["causal", "prefix"])
    residual = choices.get("residual") or choose(["input", "normed"])
    drawn: dict[str, Any] = {
        "vocab_size": choose(range(4, 120)),
        "hidden_size": choose(sizes),
        "num_layers": choose([1, 2]),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": choose(sizes),
        "max_position": 4096,
        "rope": rope,
        "norm_eps": choose([1e-5, 1.5625e-07]),
        "norm": choose(["rms", "layer"]),
        "norm_place": choose(["pre", "sandwich"]),
        "residual": residual,
        "residual_scale": choose([1.0, 7.5]) if residual == "normed" else 1.0,
        "mask": mask,
        "blanks": Blanks(start_id=0, blank_ids=choose([(1,), (3, 2)]))
        if mask == "prefix" or rope.positions == "2d"
        else None,
        "mlp": choose(["swiglu", "gelu_tanh"]),
        "qkv_bias": choose([False, True]),
        "attention_out_bias": choose([False, True]),
        "mlp_bias": choose([False, True]),
        "qk_norm": choose([False, True]),
        "experts": random_experts(choose, sizes) if choose([False, True]) else None,
        "prefix_length": choose([0, 0, 1, 33]),
        "tied_head": choose([False, True]),
    }
    return Architecture(**{**drawn, **choices})


def random_rope(choose: Choose, head_dim: int) -> Rope:
    positions: Literal["1d", "2d"] = choose(["1d", "2d"])
    return Rope(
        dims=choose(range(0, head_dim // (2 if positions == "2d" else 1) + 1, 2)),
        base=choose([100.0, 10000.0, 5e6]),
        pairing=choose(["interleaved", "half"]),
        positions=positions,
        linear_scale=choose([1.0, 4.0]),
        frequency_dtype=choose(["float32", "float16"]),
    )


def random_experts(choose: Choose, sizes: Sequence[int]) -> Experts:
    num_groups, num_groups_per_token = choose([(1, 1), (2, 1), (3, 2)])
    group_size = choose([2, 3])
    return Experts(
        num_experts=num_groups * group_size,
        num_experts_per_token=choose(range(1, num_groups_per_token * group_size + 1)),
        num_shared_experts=choose([0, 1, 2]),
        intermediate_size=choose(sizes),
        num_dense_layers=choose([0, 1]),
        num_groups=num_groups,
        num_groups_per_token=num_groups_per_token,
        normalize_weights=choose([False, True]),
        routed_scale=choose([1.0, 2.5]),
    )


def random_text(architecture: Architecture, n: int, rng: np.random.Generator) -> Ints:
    """``n`` tokens; where the network needs blanks, a context with one and what fills it."""
    token_ids = rng.integers(0, architecture.vocab_size, max(n, 2), np.int32)
    if architecture.blanks is None:
        return token_ids[:n]
    start = rng.integers(1, len(token_ids))
    token_ids[:start] = np.maximum(token_ids[:start], 1)  # no start token before the start
    token_ids[rng.integers(0, start)] = rng.choice(architecture.blanks.blank_ids)
    token_ids[start] = architecture.blanks.start_id
    return token_ids


def random_weights(architecture: Architecture, seed: int) -> dict[str, Floats]:
    """Weights that keep activations and logits near 1 and attention far from uniform.

    Their router takes the same experts for all tokens: where they are chosen by small differences,
    an engine's rounding chooses others now and then. ``choose_experts_by_token`` undoes it.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in architecture.weight_shapes().items():
        x = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            x = 1 + 0.2 * x
        elif name.endswith("router.bias"):
            x = 3.0 ** rng.permutation(len(x))
        elif name.endswith(".bias"):
            x *= 0.3
        elif name.endswith(PREFIX_NAMES):
            pass
        elif name != "embedding.weight" or architecture.tied_head:
            x /= np.sqrt(shape[1])
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            x *= 1.4  # the standard deviation of scores is then 2
        weights[name] = x.astype(np.float32)
    return weights


def choose_experts_by_token(weights: dict[str, Floats]) -> None:
    for name, weight in weights.items():
        if name.endswith("router.bias"):
            weight[:] = np.linspace(-0.1, 0.1, len(weight))


def is_packed(name: str, shape: Sequence[int]) -> bool:
    """Whether the engine keeps a weight in the form it is asked for, not as float32."""
    return len(shape) == 2 and not name.endswith(("router.weight", *PREFIX_NAMES))


def encode(dtype: str, matrix: Floats) -> tuple[Bytes, Floats]:
    """The stored bytes of ``matrix`` and, float32, exactly what they stand for."""
    if dtype == "float32":
        return _bytes(matrix), matrix
    if dtype == "float16":
        half = matrix.astype(np.float16)
        return _bytes(half), half.astype(np.float32)
    if dtype == "bfloat16":
        bits = matrix.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to nearest, ties to even
        return _bytes(rounded.astype(np.uint16)), (rounded << 16).view(np.float32)
    blocks = matrix.reshape(-1, BLOCK if dtype not in K_DTYPES else K_BLOCK)
    data, values = {
        "q8_0": _encode_q8_0,
        "q4_0": _encode_q4_0,
        "q4_1": _encode_q4_1,
        "q5_0": _encode_q5_0,
        "q5_1": _encode_q5_1,
        "q4_k": lambda x: _encode_groups(x, bits=4),
        "q5_k": lambda x: _encode_groups(x, bits=5),
        "q6_k": _encode_q6_k,
    }[dtype](blocks)
    return data.reshape(-1), values.reshape(matrix.shape)


def _encode_q8_0(blocks: Floats) -> tuple[Bytes, Floats]:
    d = _scale(np.abs(blocks).max(axis=1) / 127)
    q = np.clip(np.rint(blocks / d), -127, 127)
    return np.hstack([_bytes(d.astype(np.float16)), _bytes(q.astype(np.int8))]), d * q


def _encode_q4_0(blocks: Floats) -> tuple[Bytes, Floats]:
    d = _scale(np.abs(blocks).max(axis=1) / 7.5)
    q = np.clip(np.rint(blocks / d) + 8, 0, 15)
    return np.hstack([_bytes(d.astype(np.float16)), _nibbles(q)]), d * (q - 8)


def _encode_q4_1(blocks: Floats) -> tuple[Bytes, Floats]:
    m = _half(blocks.min(axis=1))
    d = _scale((blocks.max(axis=1) - m[:, 0]) / 15)
    q = np.clip(np.rint((blocks - m) / d), 0, 15)
    header = [_bytes(x.astype(np.float16)) for x in (d, m)]
    return np.hstack([*header, _nibbles(q)]), d * q + m


def _encode_q5_0(blocks: Floats) -> tuple[Bytes, Floats]:
    d = _scale(np.abs(blocks).max(axis=1) / 15.5)
    q = np.clip(np.rint(blocks / d) + 16, 0, 31)
    return np.hstack([_bytes(d.astype(np.float16)), _five_bits(q)]), d * (q - 16)


def _encode_q5_1(blocks: Floats) -> tuple[Bytes, Floats]:
    m = _half(blocks.min(axis=1))
    d = _scale((blocks.max(axis=1) - m[:, 0]) / 31)
    q = np.clip(np.rint((blocks - m) / d), 0, 31)
    header = [_bytes(x.astype(np.float16)) for x in (d, m)]
    return np.hstack([*header, _five_bits(q)]), d * q + m


def _five_bits(q: Floats) -> Bytes:
    """Four bytes of fifth bits, weight i at bit i, and the nibbles."""
    whole = q.astype(np.uint32)
    fifths = ((whole >> 4) << np.arange(BLOCK, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    return np.hstack([_bytes(fifths[:, None]), _nibbles(whole & 15)])


def _encode_groups(blocks: Floats, bits: int) -> tuple[Bytes, Floats]:
    """q4_k and q5_k, byte by byte: eight groups of 32 with 6-bit scales and minimums."""
    stored, values = [], []
    for block in blocks:
        groups = block.reshape(8, 32)
        low = np.minimum(groups.min(axis=1), 0)
        spread = (groups.max(axis=1) - low) / (2**bits - 1)
        d, dmin = np.float16(spread.max() / 63), np.float16(-low.min() / 63)
        s = np.clip(np.ceil(spread / np.float32(d)), 1, 63).astype(int)
        m = np.clip(np.rint(-low / np.float32(dmin)), 0, 63).astype(int) if dmin else 0 * s
        step = (np.float32(d) * s.astype(np.float32))[:, None]
        start = (np.float32(dmin) * m.astype(np.float32))[:, None]
        q = np.clip(np.rint((groups + start) / step), 0, 2**bits - 1)
        values.append((step * q.astype(np.float32) - start).reshape(-1))
        packed = bytearray(12)
        for g in range(4):
            packed[g] = s[g] | (s[g + 4] >> 4) << 6
            packed[g + 4] = m[g] | (m[g + 4] >> 4) << 6
            packed[g + 8] = (s[g + 4] & 15) | (m[g + 4] & 15) << 4
        whole = q.astype(int)
        fifths = bytes(sum((whole[g, i] >> 4) << g for g in range(8)) for i in range(32))
        nibbles = bytes(
            (whole[2 * pair, i] & 15) | (whole[2 * pair + 1, i] & 15) << 4
            for pair in range(4)
            for i in range(32)
        )
        high = fifths if bits == 5 else b""
        stored.append(d.tobytes() + dmin.tobytes() + bytes(packed) + high + nibbles)
    return np.frombuffer(b"".join(stored), np.uint8), np.array(values, np.float32)


def _encode_q6_k(blocks: Floats) -> tuple[Bytes, Floats]:
    """Sixteen groups of 16 with int8 scales; scales take either sign."""
    stored, values = [], []
    for block in blocks:
        groups = block.reshape(16, 16)
        spread = np.abs(groups).max(axis=1) / 31
        d = np.float16(spread.max() / 127)
        s = np.clip(np.ceil(spread / np.float32(d)), 1, 127).astype(np.int8)
        s[::3] *= -1
        step = (np.float32(d) * s.astype(np.float32))[:, None]
        q = np.clip(np.rint(groups / step), -32, 31)
        values.append((step * q.astype(np.float32)).reshape(-1))
        whole = (q + 32).astype(int).reshape(2, 4, 32)  # halves of four quarters
        low = bytes(
            (whole[h, k, i] & 15) | (whole[h, k + 2, i] & 15) << 4
            for h in range(2)
            for k in range(2)
            for i in range(32)
        )
        high = bytes(
            sum((whole[h, k, i] >> 4) << 2 * k for k in range(4))
            for h in range(2)
            for i in range(32)
        )
        stored.append(low + high + s.tobytes() + d.tobytes())
    return np.frombuffer(b"".join(stored), np.uint8), np.array(values, np.float32)


def _half(x: Floats) -> Floats:
    """A column, rounded as stored."""
    return x.astype(np.float16).astype(np.float32)[:, None]


def _scale(x: Floats) -> Floats:
    """The same to divide by: a block of equal weights gets scale 1."""
    rounded = _half(x)
    return np.where(rounded == 0, np.float32(1), rounded)


def _nibbles(q: Floats) -> Bytes:
    low, high = np.hsplit(q.astype(np.uint8), 2)
    return np.bitwise_or(low, np.left_shift(high, 4, dtype=np.uint8))


def _bytes(array: npt.NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).view(np.uint8)


@dataclass(frozen=True, slots=True)
class TinyModel:
    """One model twice: as bytes for the engine, as float32 for the reference."""

    architecture: Architecture
    dtypes: Mapping[str, str]
    """By weight name, what it is stored as."""
    stored: Mapping[str, Bytes]
    weights: Mapping[str, Floats]
    """What the stored bytes stand for."""

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        weights: Mapping[str, Floats],
        dtypes: Mapping[str, str] = MappingProxyType({}),
    ) -> TinyModel:
        """``weights``, those not in ``dtypes`` stored as float32."""
        dtypes = {name: dtypes.get(name, "float32") for name in weights}
        encoded = {name: encode(dtypes[name], weight) for name, weight in weights.items()}
        return cls(
            architecture,
            dtypes,
            {name: data for name, (data, _) in encoded.items()},
            {name: values for name, (_, values) in encoded.items()},
        )

    @classmethod
    def random(
        cls,
        architecture: Architecture,
        dtypes: Sequence[str] = ("float32",),
        seed: int = 0,
        *,
        experts_by_token: bool = False,
    ) -> TinyModel:
        """Random weights: each matrix stored as one of ``dtypes``, all else as any float."""
        choose = seeded(seed)
        shapes = architecture.weight_shapes()
        chosen = {n: choose(dtypes if is_packed(n, s) else FLOAT_DTYPES) for n, s in shapes.items()}
        weights = random_weights(architecture, seed)
        if experts_by_token:
            choose_experts_by_token(weights)
        return cls.of(architecture, weights, chosen)

    def native(self, **choices: Any) -> NativeModel:
        """Loaded into the engine; ``choices`` as for ``NativeModel``, but one thread by default."""
        model = NativeModel(self.architecture, **{"num_threads": 1, **choices})
        for name, shape in self.architecture.weight_shapes().items():
            model.load(name, self.dtypes[name], shape, self.stored[name])
        model.finish()
        return model

    def input_bits(self, activations: str) -> dict[str, int]:
        """By weight name, the bits of the integer inputs with which the engine multiplies it."""
        int4_inputs = {"int8": 8, "int16": 16}[activations]
        bits = dict.fromkeys(("q8_0", "q5_0", "q5_1", "q5_k", "q6_k"), 16)
        bits |= dict.fromkeys(("q4_0", "q4_1", "q4_k"), int4_inputs)
        return {
            name: bits[dtype]
            for name, dtype in self.dtypes.items()
            if dtype in bits and is_packed(name, self.weights[name].shape)
        }


@dataclass(slots=True, eq=False)
class Stream:
    """A sequence on its way through the engine, with the blocks that hold it."""

    token_ids: Ints
    block_table: Ints
    num_computed: int = 0
    layout: TextLayout | None = None
    """Of a network with blanks."""

    @property
    def num_left(self) -> int:
        return len(self.token_ids) - self.num_computed

    def next_part(self, num_tokens: int) -> tuple[Stream, int]:
        """The next so many tokens, or all that are left, but a context whole."""
        context_left = self.layout.context_length - self.num_computed if self.layout else 0
        return self, min(max(num_tokens, context_left), self.num_left)


def make_streams(
    architecture: Architecture, sequences: Sequence[Ints], seed: int = 0
) -> list[Stream]:
    """Streams that share one cache: its blocks are dealt to them in random order."""
    counts = [-(-len(token_ids) // BLOCK_SIZE) for token_ids in sequences]
    blocks = np.random.default_rng(seed).permutation(sum(counts)).astype(np.int32)
    tables = np.split(blocks, np.cumsum(counts)[:-1])
    streams = [Stream(token_ids, table) for token_ids, table in zip(sequences, tables, strict=True)]
    if architecture.blanks is not None:
        for stream in streams:
            stream.layout = architecture.layout(stream.token_ids.tolist())
    return streams


def make_cache(
    model: NativeModel, streams: Sequence[Stream], dtype: KVDType = "float16"
) -> KVCache:
    return KVCache(model, sum(len(stream.block_table) for stream in streams), dtype)


def step_input(
    parts: Sequence[tuple[Stream, int]], sampling: SamplingInput | None = None
) -> StepInput:
    """The next so many tokens of each stream, the logits of all of them wanted."""
    # What lies beyond a sequence's blocks must not be read: -1 is no block.
    tables = np.full((len(parts), max(len(s.block_table) for s, _ in parts)), -1, np.int32)
    for row, (stream, _) in zip(tables, parts, strict=True):
        row[: len(stream.block_table)] = stream.block_table
    token_ids = np.concatenate([s.token_ids[s.num_computed :][:n] for s, n in parts])

    return StepInput(
        token_ids=token_ids,
        query_lengths=np.array([n for _, n in parts], np.int32),
        kv_lengths=np.array([s.num_computed + n for s, n in parts], np.int32),
        block_tables=tables,
        logit_rows=np.arange(len(token_ids), dtype=np.int32),
        sampling=sampling,
        return_logits=True,
        **_layout_arrays(parts),
    )


def _layout_arrays(parts: Sequence[tuple[Stream, int]]) -> dict[str, Ints]:
    """What a step says of where its tokens stand, beyond their order."""
    layouts = [(s.layout, slice(s.num_computed, s.num_computed + n)) for s, n in parts if s.layout]
    arrays = {
        "positions": [p for layout, part in layouts for p in layout.positions[part]],
        "block_positions": [p for x, part in layouts for p in (x.block_positions or ())[part]],
        "context_lengths": [x.context_length for x, _ in layouts if x.context_length],
    }
    return {name: np.array(values, np.int32) for name, values in arrays.items() if values}


def advance(
    model: NativeModel, cache: KVCache, parts: Sequence[tuple[Stream, int]]
) -> list[Floats]:
    """Runs that step; the logits ``[n, vocab_size]`` of each part."""
    result = model.step(cache, step_input(parts))
    for stream, n in parts:
        stream.num_computed += n
    assert result.logits is not None
    return np.split(result.logits, np.cumsum([n for _, n in parts])[:-1])


def run(
    model: NativeModel,
    sequences: Sequence[Ints],
    *,
    chunk: int | None = None,
    kv_dtype: KVDType = "float16",
    seed: int = 0,
) -> list[Floats]:
    """Logits ``[n, vocab_size]`` of each sequence, all in one batch, ``chunk`` tokens per step."""
    streams = make_streams(model.architecture, sequences, seed)
    cache = make_cache(model, streams, kv_dtype)
    logits: list[list[Floats]] = [[] for _ in streams]
    while unfinished := [i for i, stream in enumerate(streams) if stream.num_left]:
        parts = [streams[i].next_part(chunk or streams[i].num_left) for i in unfinished]
        for i, piece in zip(unfinished, advance(model, cache, parts), strict=True):
            logits[i].append(piece)
    return [np.concatenate(pieces) for pieces in logits]
