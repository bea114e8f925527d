"""The numbers and choices that make one network. Knows no family, no file and no tensor data.

A family turns its config into an ``Architecture``; the native core runs it. Every choice that tells
one network of the lineage from another has a name here, so that neither the core nor the engine
ever asks which family it serves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding of queries and keys.

    ``dims`` leading channels of each head are rotated (of each half head when ``positions`` is
    "2d"); pair ``i`` turns by ``position / linear_scale * base ** (-2 i / dims)``.
    """

    dims: int
    base: float
    pairing: Literal["interleaved", "half"] = "interleaved"
    """Which channels turn together: (2i, 2i + 1), or (i, i + dims / 2)."""
    positions: Literal["1d", "2d"] = "1d"
    linear_scale: float = 1.0
    frequency_dtype: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts instead of the MLP, in all but the first ``num_dense_layers`` layers."""

    num_experts: int
    num_experts_per_token: int
    num_shared_experts: int
    intermediate_size: int
    num_dense_layers: int
    num_groups: int = 1
    num_groups_per_token: int = 1
    normalize_weights: bool = True
    routed_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One decoder-only network. Sizes are counts of channels, heads, layers or tokens."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    rope: Rope
    norm_eps: float
    norm: Literal["rms", "layer"] = "rms"
    norm_place: Literal["pre", "sandwich"] = "pre"
    """"sandwich" adds a norm after attention and after the MLP, before the residual sum."""
    residual: Literal["input", "normed"] = "input"
    """What a block adds its result to: its input, or its normed input times ``residual_scale``."""
    residual_scale: float = 1.0
    mask: Literal["causal", "prefix"] = "causal"
    mlp: Literal["swiglu", "gelu_tanh"] = "swiglu"
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    experts: Experts | None = None
    prefix_length: int = 0
    """Trained key/value prefix tokens (P-Tuning v2); 0 for none."""
    tied_head: bool = False

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of float16 keys and values that one token occupies over all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * 2

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Canonical weight names and shapes, ``[out, in]`` for matrices, as the core has them."""
        h, q = self.hidden_size, self.num_heads * self.head_dim
        kv, f = self.num_kv_heads * self.head_dim, self.intermediate_size
        norms = (".weight", ".bias") if self.norm == "layer" else (".weight",)
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab_size, h)}

        def linear(name: str, rows: int, cols: int, bias: bool) -> None:
            shapes[name + ".weight"] = (rows, cols)
            if bias:
                shapes[name + ".bias"] = (rows,)

        for n in range(self.num_layers):
            layer = f"layers.{n}."
            places = ["attn_norm", "mlp_norm"]
            if self.norm_place == "sandwich":
                places += ["attn_post_norm", "mlp_post_norm"]
            for place in places:
                shapes.update({layer + place + part: (h,) for part in norms})
            for name, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
                linear(layer + name, rows, h, self.qkv_bias)
            linear(layer + "attn_out", h, q, self.attention_out_bias)
            if self.qk_norm:
                shapes[layer + "attn_q_norm.weight"] = (self.head_dim,)
                shapes[layer + "attn_k_norm.weight"] = (self.head_dim,)
            if self.mlp == "swiglu":
                linear(layer + "mlp_gate", f, h, self.mlp_bias)
            linear(layer + "mlp_up", f, h, self.mlp_bias)
            linear(layer + "mlp_down", h, f, self.mlp_bias)
        shapes.update({"final_norm" + part: (h,) for part in norms})
        if not self.tied_head:
            shapes["head.weight"] = (self.vocab_size, h)
        return shapes

    @property
    def num_parameters(self) -> int:
        """Counted from one layer, not all: a damaged file may claim billions of them."""
        one, two = (
            sum(math.prod(shape) for shape in replace(self, num_layers=n).weight_shapes().values())
            for n in (1, 2)
        )
        return one + (self.num_layers - 1) * (two - one)
