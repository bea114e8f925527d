"""Trained prefixes: the official checkpoints of P-Tuning v2, and PEFT's prefix tuning.

An official checkpoint is a folder with config.json (pre_seq_len, prefix_projection) and weights, of
which only ``transformer.prefix_encoder.*`` counts; the base's may lie beside it. PEFT keeps the
computed prefix, ``prompt_embeddings`` ``[length, num_layers * 2 * kv_width]``.

The networks count positions from the first token behind an official prefix, whose keys are never
rotated. PEFT leaves the keys as they are too, but counts the prefix: a query of token p stands at
p + length. A query that is turned by p + length meets a key as one turned by p meets the same key
turned back by length, so PEFT's keys are kept turned back, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glimmer.adapters.adapter import Adapter
from glimmer.architecture import Architecture, Rope
from glimmer.checkpoints import FolderCheckpoint
from glimmer.checkpoints.folder import Shard
from glimmer.checkpoints.metadata import require
from glimmer.errors import MalformedCheckpointError, UnsupportedArchitectureError
from glimmer.families import Family
from glimmer.families.weight_map import OFFICIAL_PREFIX
from glimmer.quantization import dequantize
from glimmer.trained_prefix import TrainedPrefix

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_PEFT_TENSOR = "prompt_embeddings"


def read_official_prefix(path: Path, family: Family, architecture: Architecture) -> Adapter:
    """Of any family: those whose official code knows no prefix have it trained by others.

    Raises MalformedCheckpointError, UnsupportedArchitectureError and as FolderCheckpoint.
    """
    with FolderCheckpoint(path) as checkpoint:
        length = require(checkpoint.metadata, "pre_seq_len", int, path)
        _check_length(path, length, architecture)
        prefix = TrainedPrefix(
            checkpoint,
            OFFICIAL_PREFIX,
            length=length,
            num_layers=architecture.num_layers,
            kv_width=architecture.num_kv_heads * architecture.head_dim,
        ).values
        base = checkpoint.metadata.get("_name_or_path")
    return Adapter(
        path, family.name, base if isinstance(base, str) and base else None, prefix=prefix
    )


def read_peft_prefix(
    path: Path,
    config: Mapping[str, Any],
    shard: Shard,
    family: Family,
    architecture: Architecture,
) -> Adapter:
    """Raises MalformedCheckpointError, UnsupportedArchitectureError."""
    if architecture.rope.positions == "2d" or architecture.mask == "prefix":
        raise UnsupportedArchitectureError(
            f"{path}: PEFT's prefix tuning has no meaning on a {family.name} network, which lays "
            "out its text by two positions and shows the context to all of it. Train the official "
            "prefix (P-Tuning v2) instead."
        )
    length = config.get("num_virtual_tokens")
    a = architecture
    kv_width = a.num_kv_heads * a.head_dim
    tensor = shard.tensors.get(_PEFT_TENSOR)
    found = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
    if type(length) is not int:
        raise MalformedCheckpointError(
            f"{path}: num_virtual_tokens must be an integer, but it is {length!r:.40} in "
            "adapter_config.json."
        )
    _check_length(path, length, a)
    wanted = (length, a.num_layers * 2 * kv_width)
    if (
        tensor is None
        or tensor.shape != wanted
        or tensor.dtype not in ("float32", "float16", "bfloat16")
    ):
        raise MalformedCheckpointError(
            f"{path}: a prefix of {length} tokens (num_virtual_tokens) for this network of "
            f"{a.num_layers} layers needs a tensor {_PEFT_TENSOR!r} of shape {list(wanted)}, but "
            f"there is {found}."
        )
    values = dequantize(tensor.dtype, shard.read(_PEFT_TENSOR), tensor.shape)
    prefix = np.array(values.reshape(length, a.num_layers, 2, kv_width), np.float32)
    keys = prefix[:, :, 0].reshape(length, a.num_layers, a.num_kv_heads, a.head_dim)
    prefix[:, :, 0] = _turn_back(a.rope, keys, length).reshape(length, a.num_layers, kv_width)
    base = config.get("base_model_name_or_path")
    return Adapter(path, family.name, base if isinstance(base, str) else None, prefix=prefix)


def _check_length(path: Path, length: int, architecture: Architecture) -> None:
    if not 1 <= length <= architecture.max_position:
        raise MalformedCheckpointError(
            f"{path}: the prefix has {length} tokens, but it must have between 1 and "
            f"{architecture.max_position}."
        )
    if architecture.prefix_length:
        raise UnsupportedArchitectureError(
            f"{path} is a prefix, but the model has one of {architecture.prefix_length} tokens of "
            "its own already (pre_seq_len in its config). Use the model without it."
        )


def _turn_back(rope: Rope, keys: Floats, by: int) -> Doubles:
    """``keys`` ``[..., head_dim]`` rotated by ``-by`` positions."""
    turned = keys.astype(np.float64)
    dims = rope.dims
    if rope.pairing == "interleaved":
        first, second = slice(0, dims, 2), slice(1, dims, 2)
    else:
        first, second = slice(0, dims // 2), slice(dims // 2, dims)
    frequencies = rope.base ** (-np.arange(0, dims, 2) / dims)
    if rope.frequency_dtype == "float16":
        frequencies = frequencies.astype(np.float16).astype(np.float64)
    angles = -by / rope.linear_scale * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    x, y = keys[..., first].astype(np.float64), keys[..., second].astype(np.float64)
    turned[..., first] = x * cos - y * sin
    turned[..., second] = y * cos + x * sin
    return turned
