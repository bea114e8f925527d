"""The forward pass in numpy: slow, clear, and the definition of what every engine computes.

Everything is float64 unless asked otherwise, so that what a float32 engine differs by is its own
rounding. One call runs one whole sequence from its start; there is no cache and no batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from glimmer.architecture import Architecture, Rope

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

GROUP = 32
"""Neighbouring inputs that share a scale where a matrix takes rounded inputs."""


def forward(
    architecture: Architecture,
    weights: Mapping[str, Floats],
    token_ids: Ints,
    *,
    kv_dtype: Literal["float64", "float32", "float16"] = "float64",
    input_bits: Mapping[str, int] = MappingProxyType({}),
) -> Floats:
    """Logits ``[len(token_ids), vocab_size]``.

    ``weights`` are those of ``architecture.weight_shapes()``. Two roundings of an engine can be
    repeated here. ``kv_dtype`` is what rotated keys and values are stored as; beyond its range they
    are held at its largest value. ``input_bits`` gives, by weight name, the matrices whose inputs
    are rounded to integers of so many bits.

    Raises:
        NotImplementedError: a choice of the architecture that is not written down here yet.
    """
    _check(architecture, weights)
    a = architecture
    w = {name: weight.astype(np.float64) for name, weight in weights.items()}

    def norm(name: str, x: Doubles) -> Doubles:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        normed: Doubles = w[f"{name}.weight"] * x / np.sqrt(mean_square + a.norm_eps)
        return normed

    def linear(name: str, x: Doubles) -> Doubles:
        if (bits := input_bits.get(f"{name}.weight")) is not None:
            x = _round_inputs(x, bits)
        y: Doubles = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def attention(layer: str, x: Doubles) -> Doubles:
        num_tokens = len(x)
        positions = np.arange(num_tokens)
        by_head = (num_tokens, a.num_kv_heads, -1, a.head_dim)  # query heads grouped by KV head
        q = rotate(a.rope, linear(f"{layer}.attn_q", x).reshape(by_head), positions)
        k = rotate(a.rope, linear(f"{layer}.attn_k", x).reshape(by_head), positions)
        v = linear(f"{layer}.attn_v", x).reshape(by_head)
        k, v = (_stored(x, kv_dtype)[:, :, 0] for x in (k, v))
        scores = np.einsum("qhgd,khd->hgqk", q, k, optimize=True) / np.sqrt(a.head_dim)
        future = positions[:, None] < positions
        scores = np.where(future, -np.inf, scores)
        mixed = np.einsum("hgqk,khd->qhgd", _softmax(scores), v, optimize=True)
        return linear(f"{layer}.attn_out", mixed.reshape(num_tokens, -1))

    def mlp(layer: str, x: Doubles) -> Doubles:
        gate = linear(f"{layer}.mlp_gate", x)
        return linear(f"{layer}.mlp_down", _silu(gate) * linear(f"{layer}.mlp_up", x))

    x = w["embedding.weight"][token_ids]
    for n in range(a.num_layers):
        layer = f"layers.{n}"
        for block, name in ((attention, "attn"), (mlp, "mlp")):
            result = block(layer, norm(f"{layer}.{name}_norm", x))
            if a.norm_place == "sandwich":
                result = norm(f"{layer}.{name}_post_norm", result)
            x = x + result
    # A tied head is the embedding, and is multiplied in whatever form that is stored.
    head = "embedding" if a.tied_head else "head"
    return linear(head, norm("final_norm", x)).astype(np.float32)


def rotate(rope: Rope, x: Doubles, positions: npt.NDArray[np.int64]) -> Doubles:
    """``x`` ``[tokens, ..., head_dim]`` with the first ``rope.dims`` channels of heads turned."""
    dims = rope.dims
    if rope.pairing == "interleaved":
        first, second = slice(0, dims, 2), slice(1, dims, 2)
    else:
        first, second = slice(0, dims // 2), slice(dims // 2, dims)
    frequencies = rope.base ** (-np.arange(0, dims, 2) / dims)
    angles = np.multiply.outer(positions / rope.linear_scale, frequencies)
    angles = angles.reshape(len(x), *[1] * (x.ndim - 2), -1)
    cos, sin = np.cos(angles), np.sin(angles)
    rotated = x.copy()
    rotated[..., first] = x[..., first] * cos - x[..., second] * sin
    rotated[..., second] = x[..., second] * cos + x[..., first] * sin
    return rotated


def _stored(x: Doubles, dtype: str) -> Doubles:
    largest = np.finfo(dtype).max
    return np.clip(x, -largest, largest).astype(dtype).astype(np.float64)


def _round_inputs(x: Doubles, bits: int) -> Doubles:
    """``x`` rounded to symmetric integers, one float32 scale per ``GROUP`` channels."""
    levels = np.float32(2 ** (bits - 1) - 1)
    groups = x.astype(np.float32).reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.divide(levels, largest, out=np.zeros_like(largest), where=largest > 0)
    integers = np.rint(groups * inverse)  # half to even
    rounded: Doubles = integers.astype(np.float64) * (largest / levels)
    return rounded.reshape(x.shape)


def _softmax(x: Doubles) -> Doubles:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    weights: Doubles = e / e.sum(axis=-1, keepdims=True)
    return weights


def _silu(x: Doubles) -> Doubles:
    y: Doubles = x / (1 + np.exp(-x))
    return y


def _check(a: Architecture, weights: Mapping[str, Floats]) -> None:
    for choice, value, written in (
        ("norm", a.norm, "rms"),
        ("residual", a.residual, "input"),
        ("residual_scale", a.residual_scale, 1.0),
        ("mask", a.mask, "causal"),
        ("mlp", a.mlp, "swiglu"),
        ("rope.positions", a.rope.positions, "1d"),
        ("rope.frequency_dtype", a.rope.frequency_dtype, "float32"),
        ("qk_norm", a.qk_norm, False),
        ("experts", a.experts, None),
        ("prefix_length", a.prefix_length, 0),
    ):
        if value != written:
            raise NotImplementedError(f"{choice} {value!r}: only {written!r} is written down")
    assert {name: weight.shape for name, weight in weights.items()} == a.weight_shapes()
