"""Writes small GGUF files, correct ones and, piece by piece, damaged ones. For tests only.

Written from the format's description, not from the reader: type ids are repeated here on purpose.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TYPE_IDS = {
    **{"float32": 0, "float16": 1, "bfloat16": 30},
    **{
        "q4_0": 2,
        "q4_1": 3,
        "q8_0": 8,
        "q2_k": 10,
        "q4_k": 12,
        "q5_k": 13,
        "q6_k": 14,
        "q5_0": 6,
        "q5_1": 7,
        "i32": 26,
    },
}
_NUMPY_VALUE_TYPES = {
    **{"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6},
    **{"bool": 7, "uint64": 10, "int64": 11, "float64": 12},
}
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorEntry:
    """One row of the tensor table, as stored: ``dims`` fastest first, ``offset`` from the data."""

    name: str | bytes
    dims: Sequence[int]
    type_id: int
    offset: int

    def encode(self) -> bytes:
        dims = struct.pack(f"<I{len(self.dims)}Q", len(self.dims), *self.dims)
        return string(self.name) + dims + struct.pack("<IQ", self.type_id, self.offset)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """Type and value. int becomes uint32 or int64, float float32; numpy types keep theirs."""
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item, list) and all(isinstance(text, str) for text in item):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))
    if isinstance(item, int) and not isinstance(item, bool):
        item = np.uint32(item) if 0 <= item < 1 << 32 else np.int64(item)
    if type(item) is float:  # np.float64 is a float as well
        item = np.float32(item)
    array = np.asarray(item)
    type_id = _NUMPY_VALUE_TYPES[array.dtype.name]
    if array.ndim == 0:
        return struct.pack("<I", type_id) + array.tobytes()
    return struct.pack("<IIQ", 9, type_id, array.size) + array.tobytes()


def key(name: str | bytes, item: Any) -> bytes:
    return string(name) + value(item)


def header(
    keys: Sequence[bytes] = (),
    entries: Sequence[TensorEntry] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_keys: int | None = None,
) -> bytes:
    """Everything before the data; the counts are the true ones unless given."""
    counts = (
        len(entries) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    start = magic + struct.pack("<IQQ", version, *counts)
    return start + b"".join(keys) + b"".join(entry.encode() for entry in entries)


def padded(data: bytes, alignment: int = DEFAULT_ALIGNMENT) -> bytes:
    return data + bytes(-len(data) % alignment)


def gguf_bytes(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
    version: int = 3,
) -> bytes:
    """A whole file. ``tensors`` by name: type, row-major shape, stored bytes."""
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    entries, data = [], b""
    for name, (dtype, shape, stored) in tensors.items():
        entries.append(TensorEntry(name, tuple(reversed(shape)), TYPE_IDS[dtype], len(data)))
        data += padded(stored, alignment)
    keys = [key(name, item) for name, item in metadata.items()]
    return padded(header(keys, entries, version=version), alignment) + data


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
    version: int = 3,
) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors, version))
    return path
