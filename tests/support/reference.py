"""The forward pass in numpy: slow, clear, and the definition of what every engine computes.

Everything is float64 unless asked otherwise, so that what a float32 engine differs by is its own
rounding. One call runs one whole sequence from its start; there is no cache and no batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from glimmer.architecture import Architecture, Experts, Rope

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
KVDType = Literal["float64", "float32", "float16", "int8"]

LowRank = tuple[Floats, Floats, float]
"""A ``[rank, in]``, B ``[out, rank]`` and the scale of their product."""

GROUP = 32
"""Neighbouring inputs that share a scale where a matrix takes rounded inputs."""


def forward(
    architecture: Architecture,
    weights: Mapping[str, Floats],
    token_ids: Ints,
    *,
    kv_dtype: KVDType = "float64",
    input_bits: Mapping[str, int] = MappingProxyType({}),
    low_rank: Mapping[str, LowRank] = MappingProxyType({}),
) -> Floats:
    """Logits ``[len(token_ids), vocab_size]``.

    ``weights`` are those of ``architecture.weight_shapes()``. Two roundings of an engine can be
    repeated here. ``kv_dtype`` is what rotated keys and values are stored as; beyond its range they
    are held at its largest value. ``input_bits`` gives, by weight name, the matrices whose inputs
    are rounded to integers of so many bits. ``low_rank`` gives, by name without ".weight", what
    LoRA adds to a linear.
    """
    return Network(architecture, weights, kv_dtype, input_bits, low_rank).logits(token_ids)


class Network:
    """One network; every method takes and gives float64 rows ``[tokens, channels]``."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, Floats],
        kv_dtype: KVDType,
        input_bits: Mapping[str, int],
        low_rank: Mapping[str, LowRank] = MappingProxyType({}),
    ) -> None:
        assert {n: weight.shape for n, weight in weights.items()} == architecture.weight_shapes()
        self.a = architecture
        self.w = {name: weight.astype(np.float64) for name, weight in weights.items()}
        self.kv_dtype = kv_dtype
        self.input_bits = input_bits
        self.low_rank = low_rank

    def logits(self, token_ids: Ints) -> Floats:
        layout = self.a.layout(token_ids.tolist())
        positions = np.array([layout.positions, layout.block_positions or layout.positions])
        return self.logits_at(
            token_ids, positions, visible_keys(len(token_ids), layout.context_length)
        )

    def logits_at(
        self,
        token_ids: npt.NDArray[Any],
        positions: npt.NDArray[Any],
        sees: npt.NDArray[np.bool_],
    ) -> Floats:
        """With the tokens where ``positions`` [2, tokens] says; row i attends to the columns that
        ``sees`` marks."""
        x = self.w["embedding.weight"][token_ids]
        for n in range(self.a.num_layers):
            layer = f"layers.{n}"
            normed = self.norm(f"{layer}.attn_norm", x)
            x = self.add(x, normed, f"{layer}.attn", self.attention(layer, normed, positions, sees))
            normed = self.norm(f"{layer}.mlp_norm", x)
            mix = self.experts if self.a.has_experts(n) else self.mlp
            x = self.add(x, normed, f"{layer}.mlp", mix(f"{layer}.", normed))
        # A tied head is the embedding, and is multiplied in whatever form that is stored.
        head = "embedding" if self.a.tied_head else "head"
        return self.linear(head, self.norm("final_norm", x)).astype(np.float32)

    def add(self, x: Doubles, normed: Doubles, block: str, result: Doubles) -> Doubles:
        """The residual sum after attention or MLP, which made ``result`` of ``normed``."""
        if self.a.norm_place == "sandwich":
            result = self.norm(f"{block}_post_norm", result)
        return (normed * self.a.residual_scale if self.a.residual == "normed" else x) + result

    def norm(self, name: str, x: Doubles) -> Doubles:
        if self.a.norm == "rms":
            return rms_norm(self.w[f"{name}.weight"], x, self.a.norm_eps)
        centred = x - x.mean(axis=-1, keepdims=True)
        normed = rms_norm(self.w[f"{name}.weight"], centred, self.a.norm_eps)
        return normed + self.w[f"{name}.bias"]

    def linear(self, name: str, x: Doubles) -> Doubles:
        added: Doubles | float = 0.0
        if name in self.low_rank:
            a, b, scale = self.low_rank[name]
            added = scale * ((x @ a.astype(np.float64).T) @ b.astype(np.float64).T)
        if (bits := self.input_bits.get(f"{name}.weight")) is not None:
            x = _round_inputs(x, bits)
        y: Doubles = x @ self.w[f"{name}.weight"].T + added
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def attention(
        self, layer: str, x: Doubles, positions: npt.NDArray[Any], sees: npt.NDArray[np.bool_]
    ) -> Doubles:
        a, num_tokens = self.a, len(x)
        by_head = (num_tokens, a.num_kv_heads, -1, a.head_dim)  # query heads grouped by KV head
        q = self.linear(f"{layer}.attn_q", x).reshape(by_head)
        k = self.linear(f"{layer}.attn_k", x).reshape(by_head)
        v = self.linear(f"{layer}.attn_v", x).reshape(by_head)[:, :, 0]
        if a.qk_norm:
            q = rms_norm(self.w[f"{layer}.attn_q_norm.weight"], q, a.norm_eps)
            k = rms_norm(self.w[f"{layer}.attn_k_norm.weight"], k, a.norm_eps)
        q, k = rotate(a.rope, q, positions), rotate(a.rope, k, positions)[:, :, 0]
        if a.prefix_length:  # seen by all tokens, and never rotated
            shape = (a.prefix_length, a.num_kv_heads, a.head_dim)
            k = np.concatenate([self.w[f"{layer}.prefix_keys.weight"].reshape(shape), k])
            v = np.concatenate([self.w[f"{layer}.prefix_values.weight"].reshape(shape), v])
            sees = np.pad(sees, ((0, 0), (a.prefix_length, 0)), constant_values=True)
        k, v = _stored(k, self.kv_dtype), _stored(v, self.kv_dtype)
        scores = np.einsum("qhgd,khd->hgqk", q, k, optimize=True) / np.sqrt(a.head_dim)
        probabilities = _softmax(np.where(sees, scores, -np.inf))
        mixed = np.einsum("hgqk,khd->qhgd", probabilities, v, optimize=True)
        return self.linear(f"{layer}.attn_out", mixed.reshape(num_tokens, -1))

    def mlp(self, prefix: str, x: Doubles) -> Doubles:
        up = self.linear(f"{prefix}mlp_up", x)
        if self.a.mlp == "gelu_tanh":
            return self.linear(f"{prefix}mlp_down", gelu_tanh(up))
        return self.linear(f"{prefix}mlp_down", _silu(self.linear(f"{prefix}mlp_gate", x)) * up)

    def experts(self, prefix: str, x: Doubles) -> Doubles:
        e = self.a.experts
        assert e is not None
        router, bias = self.w[f"{prefix}router.weight"], self.w[f"{prefix}router.bias"]
        weights = route(e, x @ router.T, bias)
        out = np.zeros_like(x)
        for i in range(e.num_experts):
            chosen = weights[:, i] != 0
            if chosen.any():
                out[chosen] += weights[chosen, i, None] * self.mlp(
                    f"{prefix}experts.{i}.", x[chosen]
                )
        return out + self.mlp(f"{prefix}shared.", x) if e.num_shared_experts else out


def visible_keys(num_tokens: int, context_length: int) -> npt.NDArray[np.bool_]:
    """``[queries, keys]``: what stands before a token and itself, and the whole context."""
    tokens = np.arange(num_tokens)
    return (tokens <= tokens[:, None]) | (tokens < context_length)


def rms_norm(weight: Doubles, x: Doubles, eps: float) -> Doubles:
    normed: Doubles = weight * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return normed


def rotate(rope: Rope, x: Doubles, positions: npt.NDArray[Any]) -> Doubles:
    """``x`` ``[tokens, ..., head_dim]`` turned by ``positions`` ``[2, tokens]``.

    With 2d positions the second row turns the second half of each head; with 1d ones it is unused.
    """
    if rope.positions == "1d":
        return turn(rope, x, positions[0])
    halves = np.split(x, 2, axis=-1)
    turned = [turn(rope, half, row) for half, row in zip(halves, positions, strict=True)]
    return np.concatenate(turned, axis=-1)


def turn(rope: Rope, x: Doubles, positions: npt.NDArray[Any]) -> Doubles:
    """``x`` ``[tokens, ..., channels]`` with its first ``rope.dims`` channels turned."""
    dims = rope.dims
    if rope.pairing == "interleaved":
        first, second = slice(0, dims, 2), slice(1, dims, 2)
    else:
        first, second = slice(0, dims // 2), slice(dims // 2, dims)
    frequencies = rope.base ** (-np.arange(0, dims, 2) / dims)
    if rope.frequency_dtype == "float16":
        frequencies = frequencies.astype(np.float32).astype(np.float16).astype(np.float64)
    angles = np.multiply.outer(positions / rope.linear_scale, frequencies)
    angles = angles.reshape(len(x), *[1] * (x.ndim - 2), -1)
    cos, sin = np.cos(angles), np.sin(angles)
    rotated = x.copy()
    rotated[..., first] = x[..., first] * cos - x[..., second] * sin
    rotated[..., second] = x[..., second] * cos + x[..., first] * sin
    return rotated


def route(experts: Experts, logits: Doubles, bias: Doubles) -> Doubles:
    """How much of each expert a token takes, ``[tokens, num_experts]``; 0 for those not chosen."""
    scores = 1 / (1 + np.exp(-logits))
    choices = scores + bias
    groups = choices.reshape(len(choices), experts.num_groups, -1)
    if experts.num_groups_per_token < experts.num_groups:
        best_two = np.sort(groups, axis=-1)[..., -2:].sum(axis=-1)
        kept = _largest(best_two, experts.num_groups_per_token)
        choices = np.where(kept[..., None], groups, -np.inf).reshape(choices.shape)
    chosen = _largest(choices, experts.num_experts_per_token)
    weights: Doubles = np.where(chosen, scores, 0)
    if experts.normalize_weights:
        weights /= weights.sum(axis=-1, keepdims=True) + 1e-20
    return weights * experts.routed_scale


def _largest(x: Doubles, count: int) -> npt.NDArray[np.bool_]:
    """True at the ``count`` largest of each row; of equal ones the first."""
    chosen = np.zeros(x.shape, np.bool_)
    np.put_along_axis(chosen, np.argsort(-x, axis=-1, kind="stable")[:, :count], True, axis=-1)
    return chosen


def gelu_tanh(x: Doubles) -> Doubles:
    y: Doubles = 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))
    return y


def _stored(x: Doubles, dtype: str) -> Doubles:
    """Keys or values ``[tokens, heads, head_dim]``; int8 has a scale for each token and head."""
    if dtype == "int8":
        return _round_groups(x.astype(np.float32), 8)
    largest = np.finfo(dtype).max
    return np.clip(x, -largest, largest).astype(dtype).astype(np.float64)


def _round_inputs(x: Doubles, bits: int) -> Doubles:
    """``x`` rounded to symmetric integers, one float32 scale per ``GROUP`` channels."""
    groups = x.astype(np.float32).reshape(len(x), -1, GROUP)
    return _round_groups(groups, bits).reshape(x.shape)


def _round_groups(groups: Floats, bits: int) -> Doubles:
    """The last axis has one scale."""
    levels = np.float32(2 ** (bits - 1) - 1)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.divide(levels, largest, out=np.zeros_like(largest), where=largest > 0)
    integers = np.rint(groups * inverse)  # half to even
    rounded: Doubles = integers.astype(np.float64) * (largest / levels)
    return rounded


def _softmax(x: Doubles) -> Doubles:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    weights: Doubles = e / e.sum(axis=-1, keepdims=True)
    return weights


def _silu(x: Doubles) -> Doubles:
    y: Doubles = x / (1 + np.exp(-x))
    return y
