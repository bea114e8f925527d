"""Small networks of every family, as their own configs and layouts have them."""

from __future__ import annotations

import math
from typing import Any

from glimmer.architecture import Architecture, Blanks, Experts, Rope

_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position": 256,
    "norm_eps": 1e-5,
}
_GLM = {**_SIZES, "rope": Rope(dims=8, base=10000.0), "qkv_bias": True}
_CHOICES: dict[str, dict[str, Any]] = {
    "smollm": {**_SIZES, "rope": Rope(dims=16, base=10000.0)},
    "chatglm": {
        **_SIZES,
        "num_kv_heads": 4,
        "rope": Rope(
            dims=8, base=10000.0, pairing="half", positions="2d", frequency_dtype="float16"
        ),
        "norm": "layer",
        "residual": "normed",
        "residual_scale": math.sqrt(56),
        "mask": "prefix",
        "blanks": Blanks(start_id=290, blank_ids=(291, 292)),
        "mlp": "gelu_tanh",
        "qkv_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
        "tied_head": True,
    },
    "chatglm2": {**_GLM, "rope": Rope(dims=8, base=10000.0, linear_scale=4.0)},
    "chatglm3": {**_GLM, "rope": Rope(dims=8, base=500000.0)},
    "glm4": {**_GLM, "rope": Rope(dims=8, base=5e6), "norm_eps": 1.5625e-07},
    "glm4_0414": {**_GLM, "norm_place": "sandwich"},
    "glm45": {
        **_GLM,
        "rope": Rope(dims=8, base=1e6, pairing="half"),
        "qk_norm": True,
        "experts": Experts(
            num_experts=6,
            num_experts_per_token=2,
            num_shared_experts=1,
            intermediate_size=32,
            num_dense_layers=1,
            routed_scale=2.5,
        ),
    },
}


def tiny_architecture(family: str, **choices: Any) -> Architecture:
    """A network as the family's published ones are, but small; ``choices`` change it."""
    return Architecture(**{**_CHOICES[family], **choices})
