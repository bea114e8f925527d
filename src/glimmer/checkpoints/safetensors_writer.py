"""Writes safetensors files, tensor by tensor, cut into shards with an index.

The library's own writer wants all tensors in memory at once, and numpy has no bfloat16. Format:
https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

MAX_SHARD_BYTES = 5 * 10**9
"""As large as the shards that Hugging Face's libraries write."""
_DTYPES = {
    "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2), "int8": ("I8", 1),
    "uint8": ("U8", 1),
}  # fmt: skip
_METADATA = {"format": "pt"}  # without it transformers refuses a file
_PIECE_BYTES = 2 << 20  # a large page


@dataclass(frozen=True, slots=True)
class NewTensor:
    name: str
    dtype: str
    """float32, float16, bfloat16, int8 or uint8."""
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
        write_file(folder / "model.safetensors", shards[0], _METADATA, progress)
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, shard, _METADATA, progress)
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


def write_file(
    path: Path,
    tensors: Sequence[NewTensor],
    metadata: Mapping[str, str],
    progress: Callable[[int], None] = lambda size_bytes: None,
    *,
    alignment: int = 8,
) -> None:
    """One file. Its data begins at a multiple of ``alignment`` bytes."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for t in tensors:
        end = offset + t.size_bytes
        kind = _DTYPES[t.dtype][0]
        entries[t.name] = {"dtype": kind, "shape": t.shape, "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % alignment)
    with path.open("wb", buffering=0) as stream:
        pieces = _Pieces(stream)
        pieces.write(len(header).to_bytes(8, "little") + header)
        for t in tensors:
            data = t.read()
            assert data.nbytes == t.size_bytes, f"{t.name}: {data.nbytes} bytes"
            pieces.write(np.ascontiguousarray(data).data)
            progress(t.size_bytes)
        pieces.flush()


class _Pieces:
    """Writes a file in whole pieces: the system then keeps it in large pages, where it can."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._piece = bytearray(_PIECE_BYTES)
        self._length = 0

    def write(self, data: bytes | memoryview) -> None:
        left = memoryview(data).cast("B")
        while len(left) > 0:
            taken = min(len(left), _PIECE_BYTES - self._length)
            self._piece[self._length : self._length + taken] = left[:taken]
            self._length += taken
            left = left[taken:]
            if self._length == _PIECE_BYTES:
                self.flush()

    def flush(self) -> None:
        left = memoryview(self._piece)[: self._length]
        while len(left) > 0:  # a write may take less than it was given
            left = left[self._stream.write(left) :]
        self._length = 0
