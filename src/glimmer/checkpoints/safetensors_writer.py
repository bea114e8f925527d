"""Writes safetensors files, tensor by tensor, cut into shards with an index.

The library's own writer wants all tensors in memory at once, and numpy has no bfloat16. Format:
https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

MAX_SHARD_BYTES = 5 * 10**9
"""As large as the shards that Hugging Face's libraries write."""
_DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2), "int8": ("I8", 1)}


@dataclass(frozen=True, slots=True)
class NewTensor:
    name: str
    dtype: str
    """float32, float16, bfloat16 or int8."""
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.uint8]]
    """Makes the stored bytes when it is their turn."""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * _DTYPES[self.dtype][1]


def write_safetensors(
    folder: Path,
    tensors: Sequence[NewTensor],
    progress: Callable[[int], None] = lambda size_bytes: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Fill ``folder`` with model.safetensors, or with shards and model.safetensors.index.json."""
    shards = _cut(tensors, max_shard_bytes)
    if len(shards) == 1:
        _write(folder / "model.safetensors", shards[0], progress)
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        _write(folder / name, shard, progress)
        weight_map.update({tensor.name: name for tensor in shard})
    index = {
        "metadata": {"total_size": sum(tensor.size_bytes for tensor in tensors)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    text = json.dumps(index, indent=2) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _cut(tensors: Sequence[NewTensor], limit: int) -> list[list[NewTensor]]:
    shards: list[list[NewTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size_bytes
    return shards


def _write(path: Path, tensors: Sequence[NewTensor], progress: Callable[[int], None]) -> None:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for t in tensors:
        end = offset + t.size_bytes
        kind = _DTYPES[t.dtype][0]
        entries[t.name] = {"dtype": kind, "shape": t.shape, "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for t in tensors:
            data = t.read()
            assert data.nbytes == t.size_bytes, f"{t.name}: {data.nbytes} bytes"
            stream.write(np.ascontiguousarray(data).data)
            progress(t.size_bytes)
