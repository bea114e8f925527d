"""Small networks of every family, as their own configs and layouts have them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glimmer.architecture import Architecture, Blanks, Experts, Rope
from glimmer.checkpoints.safetensors_writer import NewTensor, write_safetensors
from glimmer.families import all_families
from glimmer.families.chatglm2 import export as chatglm2
from glimmer.families.weight_map import Layout
from glimmer.quantization import quantize
from tests.support import tiny_tokenizers
from tests.support.tiny import random_weights

Floats = npt.NDArray[np.float32]

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


def tiny_weights(architecture: Architecture, seed: int = 0) -> dict[str, Floats]:
    """Random float32 weights that float16 and bfloat16 hold exactly."""
    weights = random_weights(architecture, seed)
    return {
        name: (w.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        for name, w in weights.items()
    }


def assemble(
    layout: Layout, architecture: Architecture, weights: Mapping[str, Floats]
) -> dict[str, Floats]:
    """The tensors of a file in ``layout``."""
    tensors: dict[str, Floats] = {}
    rows: dict[str, int] = {}
    for name in weights:
        piece = layout.pieces_of(name)[0]
        if ranges := piece.row_ranges(architecture, name):
            rows[piece.tensor] = max(rows.get(piece.tensor, 0), ranges[-1][1])
    for name, weight in weights.items():
        piece = layout.pieces_of(name)[0]
        ranges = piece.row_ranges(architecture, name)
        if ranges is None:
            tensors[piece.tensor] = weight
            continue
        whole = tensors.setdefault(
            piece.tensor, np.zeros((rows[piece.tensor], *weight.shape[1:]), np.float32)
        )
        start = 0
        for first, last in ranges:
            whole[first:last] = weight[start : start + last - first]
            start += last - first
    return tensors


def write_folder(
    path: Path,
    family: str,
    layout_name: str,
    architecture: Architecture,
    weights: Mapping[str, Floats],
    *,
    dtype: str = "float32",
    tokenizer: bool = False,
) -> Path:
    """A folder with the family's config, weights and, if wanted, a tiny tokenizer."""
    found = all_families()[family]
    layout = found.weight_map.layout(layout_name)
    assert layout is not None
    path.mkdir(parents=True)
    tensors = assemble(layout, architecture, weights)
    write_safetensors(
        path,
        [
            NewTensor(name, dtype, t.shape, lambda t=t: quantize(dtype, t))  # type: ignore[misc]
            for name, t in tensors.items()
        ],
    )
    config = configs(family)[layout_name](
        architecture, dtype=dtype, eos_token_ids=(2, 3), pad_token_id=0
    )
    (path / "config.json").write_text(json.dumps(config))
    if tokenizer:
        for name, data in tiny_tokenizers.files(family, layout_name).items():
            (path / name).write_bytes(data)
    return path


def configs(family: str) -> dict[str, Any]:
    """By layout, what makes the config of a folder."""
    exporter = all_families()[family].exporter
    assert exporter is not None
    forms = {exporter.folder.layout: exporter.folder.config}
    if exporter.integers is not None:
        forms[exporter.integers.layout] = exporter.integers.config
    if family == "glm4":  # read in the remote code's layout, never written in it
        forms["official"] = glm4_remote_config
    return forms


def glm4_remote_config(a: Architecture, **rest: Any) -> dict[str, Any]:
    config = chatglm2.official_config(a, **rest)
    return {**config, "eos_token_id": [2, 3], "num_hidden_layers": a.num_layers}
