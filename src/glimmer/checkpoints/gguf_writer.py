"""Writes GGUF version 3, tensor by tensor: no more than one is in memory.

The format is told in gguf_header.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from glimmer.checkpoints.ggml_types import GGML_TYPES, GGMLType

ALIGNMENT = 32
_TYPE_IDS = {kind.name: type_id for type_id, kind in GGML_TYPES.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_VALUE_TYPES = {
    **{"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6},
    **{"uint64": 10, "int64": 11, "float64": 12},
}

GGUFValue = str | bool | int | float | Sequence[str] | npt.NDArray[np.number[Any]] | np.number[Any]
"""An int is written as uint32 (uint64 where it is larger), a float as float32; an array or a number
of numpy as its own type."""


@dataclass(frozen=True, slots=True)
class NewTensor:
    """``dtype`` is a scheme's or GGML's name; ``shape`` is row-major, slowest dimension first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.uint8]]
    """Makes the stored bytes when it is their turn."""

    @property
    def kind(self) -> GGMLType:
        return GGML_TYPES[_TYPE_IDS[self.dtype]]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape)) // self.kind.block_size * self.kind.block_bytes


def is_ggml_type(dtype: str) -> bool:
    return dtype in _TYPE_IDS


def gguf_size(metadata: Mapping[str, GGUFValue], tensors: Sequence[NewTensor]) -> int:
    """Bytes of the whole file."""
    return len(_header(metadata, tensors)) + sum(_padded(t.size_bytes) for t in tensors)


def write_gguf(
    stream: IO[bytes],
    metadata: Mapping[str, GGUFValue],
    tensors: Sequence[NewTensor],
    progress: Callable[[int], None] = lambda size_bytes: None,
) -> None:
    """Write a whole file; ``progress`` hears of every tensor's bytes once they are written."""
    stream.write(_header(metadata, tensors))
    for tensor in tensors:
        data = tensor.read()
        assert data.nbytes == tensor.size_bytes, f"{tensor.name}: {data.nbytes} bytes"
        stream.write(np.ascontiguousarray(data).data)
        stream.write(bytes(_padded(tensor.size_bytes) - tensor.size_bytes))
        progress(tensor.size_bytes)


def _header(metadata: Mapping[str, GGUFValue], tensors: Sequence[NewTensor]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(_string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        parts.append(struct.pack("<IQ", _TYPE_IDS[tensor.dtype], offset))
        offset += _padded(tensor.size_bytes)
    header = b"".join(parts)
    return header + bytes(_padded(len(header)) - len(header))


def _value(value: GGUFValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return _value(np.uint32(value) if value < 1 << 32 else np.uint64(value))
    if isinstance(value, float) and not isinstance(value, np.number):
        return _value(np.float32(value))
    if isinstance(value, np.number):
        return struct.pack("<I", _VALUE_TYPES[value.dtype.name]) + value.tobytes()
    if isinstance(value, np.ndarray):
        head = struct.pack("<IIQ", _ARRAY, _VALUE_TYPES[value.dtype.name], value.size)
        return head + value.tobytes()
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
