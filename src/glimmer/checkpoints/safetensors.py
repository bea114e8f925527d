"""A safetensors file: names, shapes and views of a memory map. Trusts nothing.

Format (https://github.com/huggingface/safetensors, README):

    u64 length of the header   header, a JSON object   the tensors' bytes

with ``{"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [first, last]}, ...}``. Offsets
count from the end of the header; the tensors fill the rest without a hole. Read here and not by the
library since numpy, through which the library gives tensors, has no bfloat16.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from glimmer.checkpoints.checkpoint import TensorInfo
from glimmer.checkpoints.json_file import MAX_BYTES, parse_object
from glimmer.checkpoints.mapped_file import MappedFile
from glimmer.errors import MalformedCheckpointError, UnsupportedTensorTypeError

# Name in the file -> our name, bytes.
_DTYPES = {
    "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "F64": ("float64", 8),
    "I8": ("int8", 1), "I16": ("int16", 2), "I32": ("int32", 4), "I64": ("int64", 8),
    "U8": ("uint8", 1), "U16": ("uint16", 2), "U32": ("uint32", 4), "U64": ("uint64", 8),
    "BOOL": ("bool", 1), "F8_E4M3": ("f8_e4m3", 1), "F8_E5M2": ("f8_e5m2", 1),
    "F8_E8M0": ("f8_e8m0", 1), "C64": ("complex64", 8),
}  # fmt: skip
_MAX_DIMS = 8


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with ``head`` looks like one."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_BYTES


class SafetensorsFile:
    """One open file.

    Raises MalformedCheckpointError or UnsupportedTensorTypeError, naming the tensor.
    """

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        header = _read_header(self._file)
        self.metadata: Mapping[str, Any] = MappingProxyType(header.metadata)
        """What the file says of itself under ``__metadata__``."""
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(header.tensors)

    def use_large_pages(self) -> None:
        """Ask for large pages, where the system has them for files."""
        self._file.use_large_pages()

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        tensor = self.tensors[name]
        return self._file.view(tensor.offset, tensor.size_bytes)

    def release(self, name: str) -> None:
        tensor = self.tensors[name]
        self._file.release(tensor.offset, tensor.size_bytes)


@dataclass(frozen=True, slots=True)
class _Header:
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def _read_header(file: MappedFile) -> _Header:
    path, size = file.path, len(file)
    length = int.from_bytes(file.data[:8], "little")
    if size < 8 or length > min(size - 8, MAX_BYTES):
        raise MalformedCheckpointError(
            f"{path}: the header claims {length} bytes, but the file has {size}; it is truncated "
            "or damaged: download it again"
        )
    header = parse_object(file.data[8 : 8 + length], f"the header of {path}")
    start, room = 8 + length, size - 8 - length
    tensors = {
        name: _tensor(name, entry, start, room, path)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    end = start
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.size_bytes)):
        if tensor.offset != end:
            kind = "overlaps another" if tensor.offset < end else "follows a hole"
            raise MalformedCheckpointError(
                f"{path}: tensor {tensor.name!r} {kind}: it begins at byte {tensor.offset} and not "
                f"at {end}; the file is damaged: download it again"
            )
        end += tensor.size_bytes
    if end != size:
        raise MalformedCheckpointError(
            f"{path} has {size} bytes, but its header accounts for {end}; it is truncated or "
            "damaged: download it again"
        )
    metadata = header.get("__metadata__")
    return _Header(metadata if isinstance(metadata, dict) else {}, tensors)


def _tensor(name: str, entry: Any, start: int, room: int, path: Path) -> TensorInfo:
    def malformed(what: str) -> MalformedCheckpointError:
        return MalformedCheckpointError(f"{path}: tensor {name!r} {what}; the file is damaged")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise malformed("has no entry of dtype, shape and data_offsets")
    kind = entry["dtype"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise UnsupportedTensorTypeError(
            f"{path}: tensor {name!r} has the type {reprlib.repr(kind)}, which is not known; known "
            f"are {', '.join(_DTYPES)}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers, what in ((shape, "shape"), (offsets, "data_offsets")):
        if not isinstance(numbers, list) or not all(
            type(n) is int and 0 <= n < 1 << 48 for n in numbers
        ):
            raise malformed(f"has the {what} {reprlib.repr(numbers)}")
    if len(shape) > _MAX_DIMS or len(offsets) != 2:
        raise malformed(f"has {len(shape)} dimensions and {len(offsets)} offsets")
    first, last = offsets
    dtype, item_bytes = _DTYPES[kind]
    if not first <= last <= room:
        raise malformed(f"lies at bytes {first} to {last} of {room}")
    if math.prod(shape) * item_bytes != last - first:
        raise malformed(f"of type {kind} and shape {shape} has {last - first} bytes")
    return TensorInfo(name, tuple(shape), dtype, start + first, last - first)
