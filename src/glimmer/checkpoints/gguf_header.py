"""What a GGUF file says about itself: metadata and tensor table. Reads no weights, trusts nothing.

Format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little endian:

    "GGUF"   u32 version   u64 num_tensors   u64 num_keys
    keys     string key, u32 value type, value
    tensors  string name, u32 num_dims, u64 dims[num_dims], u32 type, u64 offset
    data     from the next multiple of general.alignment; offsets count from there

A string is a u64 length and UTF-8 bytes. Dimensions come fastest first. Versions 2 and 3 differ
only in that 3 may be big endian. Every count and length is held against the bytes that are left
before anything is read or allocated for it.
"""

from __future__ import annotations

import itertools
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from glimmer.checkpoints.checkpoint import TensorInfo
from glimmer.checkpoints.content import HEAD_BYTES, describe_content
from glimmer.checkpoints.ggml_types import GGML_TYPES, REMOVED_GGML_TYPES, GGMLType
from glimmer.errors import (
    MalformedCheckpointError,
    UnknownFormatError,
    UnsupportedTensorTypeError,
)

_MAGIC = b"GGUF"
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = MappingProxyType(
    {
        type_id: struct.Struct("<" + code)
        for type_id, code in {
            **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f"},
            **{10: "Q", 11: "q", 12: "d"},
        }.items()
    }
)

# Real files stay far below these; they bound what a hostile one can make us allocate.
_MAX_NAME_BYTES = (1 << 16) - 1
_MAX_STRING_BYTES = 1 << 28
_MAX_ARRAY_LENGTH = 1 << 24
_MAX_DIMS = 4
_MAX_ELEMENTS = (1 << 63) - 1
_MIN_ALIGNMENT, _MAX_ALIGNMENT, _DEFAULT_ALIGNMENT = 8, 1 << 16, 32

_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    keys_end: int
    """Offset of the byte behind the last key."""


def read_header(data: bytes | mmap.mmap, path: Path) -> GGUFHeader:
    """Parses and checks the whole header; ``path`` is for messages.

    Raises UnknownFormatError (not GGUF, or a GGUF that we do not read), MalformedCheckpointError
    and UnsupportedTensorTypeError, each naming the file and the key or tensor.
    """
    cursor = _Cursor(data, path)
    version = _read_version(cursor)
    num_tensors = cursor.count("the number of tensors", _MIN_TENSOR_BYTES)
    num_keys = cursor.count("the number of metadata keys", _MIN_KEY_BYTES)
    metadata = _read_metadata(cursor, num_keys)
    keys_end = cursor.position
    alignment = _alignment(metadata, cursor)
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnknownFormatError(
            f"{path} is one of {metadata['split.count']!r} parts of a split GGUF file; "
            "join them with `llama-gguf-split --merge` first"
        )
    entries = _read_tensor_table(cursor, num_tensors)
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {entry.name: _place(entry, data_start, alignment, cursor) for entry in entries}
    _refuse_overlaps(tensors, cursor)
    return GGUFHeader(version, metadata, tensors, keys_end)


class _Cursor:
    """Takes values from the front of ``data`` and never passes its end."""

    def __init__(self, data: bytes | mmap.mmap, path: Path) -> None:
        self.data = data
        self.size = len(data)
        self.path = path
        self.position = 0

    def malformed(self, text: str) -> NoReturn:
        raise MalformedCheckpointError(f"{self.path}: {text}")

    def truncated(self, what: str) -> NoReturn:
        self.malformed(
            f"the file of {self.size} bytes ends inside {what}; it is truncated or damaged: "
            "download it again"
        )

    def number(self, kind: struct.Struct, what: str) -> Any:
        start, self.position = self.position, self.position + kind.size
        if self.position > self.size:
            self.truncated(what)
        return kind.unpack_from(self.data, start)[0]

    def count(self, what: str, item_bytes: int) -> int:
        """A u64 that announces items of at least ``item_bytes`` each."""
        count: int = self.number(_U64, what)
        left = self.size - self.position
        if count * item_bytes > left:
            self.malformed(
                f"{what} is {count}, which needs at least {count * item_bytes} bytes; only {left} "
                "are left: the file is truncated or damaged, download it again"
            )
        return count

    def string(self, what: str, max_bytes: int) -> str:
        length = self.count(f"the length of {what}", 1)
        if length > max_bytes:
            self.malformed(f"{what} is {length} bytes long; at most {max_bytes} are allowed")
        start, self.position = self.position, self.position + length
        try:
            return self.data[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            self.malformed(f"{what} is not valid UTF-8 ({error.reason} at byte {error.start})")

    def strings(self, count: int, what: str) -> list[str]:
        # Vocabularies hold hundreds of thousands of strings: this loop is most of the time it
        # takes to open a file, so it works on locals and looks for faults only once one is certain.
        data, size, unpack_from = self.data, self.size, _U64.unpack_from
        items: list[str] = []
        append, end = items.append, self.position
        try:
            for _ in range(count):
                (length,) = unpack_from(data, end)
                start = end + 8
                end = start + length
                if end > size:
                    self.truncated(f"item {len(items)} of {what}")
                append(data[start:end].decode("utf-8"))
        except UnicodeDecodeError as error:
            self.malformed(f"item {len(items)} of {what} is not valid UTF-8 ({error.reason})")
        except struct.error:
            self.truncated(f"item {len(items)} of {what}")
        self.position = end
        return items

    def numbers(self, kind: np.dtype[Any], count: int) -> list[Any]:
        array = np.frombuffer(self.data, kind, count, self.position)
        self.position += array.nbytes
        items: list[Any] = array.tolist()
        return items


def _read_version(cursor: _Cursor) -> int:
    head = cursor.data[:HEAD_BYTES]
    if not head.startswith(_MAGIC):
        raise UnknownFormatError(
            f"{cursor.path} is not a GGUF file; it looks like {describe_content(head)}"
        )
    cursor.position = len(_MAGIC)
    version: int = cursor.number(_U32, "the version")
    if version & 0xFFFF == 0:
        raise UnknownFormatError(
            f"{cursor.path} is a big-endian GGUF file; only little-endian ones are read: "
            "convert the model again without --bigendian"
        )
    if version not in (2, 3):
        raise UnknownFormatError(
            f"{cursor.path} is GGUF version {version}; versions 2 and 3 are read: "
            "convert the model again with a current converter"
        )
    return version


def _read_metadata(cursor: _Cursor, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(num_keys):
        key = cursor.string(f"the name of metadata key {index}", _MAX_NAME_BYTES)
        if not key:
            cursor.malformed(f"metadata key {index} has an empty name")
        if key in metadata:
            cursor.malformed(f"metadata key {key!r} occurs twice")
        metadata[key] = _read_value(cursor, f"metadata key {key!r}")
    return metadata


def _read_value(cursor: _Cursor, what: str) -> Any:
    type_id: int = cursor.number(_U32, f"the type of {what}")
    if type_id in _NUMBERS:
        return cursor.number(_NUMBERS[type_id], what)
    if type_id == _BOOL:
        return _bools([cursor.number(_NUMBERS[0], what)], cursor, what)[0]
    if type_id == _STRING:
        return cursor.string(what, _MAX_STRING_BYTES)
    if type_id != _ARRAY:
        cursor.malformed(f"{what} has the unknown value type {type_id}; types 0 to 12 are defined")
    return _read_array(cursor, what)


def _read_array(cursor: _Cursor, what: str) -> list[Any]:
    type_id: int = cursor.number(_U32, f"the item type of {what}")
    if type_id == _ARRAY:
        cursor.malformed(f"{what} is an array of arrays; only flat arrays are read")
    if type_id not in _NUMBERS and type_id not in (_BOOL, _STRING):
        cursor.malformed(f"{what} has the unknown item type {type_id}; types 0 to 12 are defined")
    # A string takes at least the 8 bytes of its length.
    item_bytes = {_BOOL: 1, _STRING: 8}.get(type_id) or _NUMBERS[type_id].size
    count = cursor.count(f"the length of {what}", item_bytes)
    if count > _MAX_ARRAY_LENGTH:
        cursor.malformed(f"{what} has {count} items; at most {_MAX_ARRAY_LENGTH} are allowed")
    if type_id == _STRING:
        return cursor.strings(count, what)
    if type_id == _BOOL:
        return _bools(cursor.numbers(np.dtype(np.uint8), count), cursor, what)
    return cursor.numbers(np.dtype(_NUMBERS[type_id].format), count)


def _bools(values: list[int], cursor: _Cursor, what: str) -> list[bool]:
    if values and max(values) > 1:
        cursor.malformed(f"{what} holds the boolean {max(values)}; 0 and 1 are allowed")
    return [value == 1 for value in values]


def _alignment(metadata: dict[str, Any], cursor: _Cursor) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if (
        type(value) is not int
        or not _MIN_ALIGNMENT <= value <= _MAX_ALIGNMENT
        or value & (value - 1)
    ):
        cursor.malformed(
            f"metadata key 'general.alignment' is {value!r}; "
            f"powers of two from {_MIN_ALIGNMENT} to {_MAX_ALIGNMENT} are allowed"
        )
    return value


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of the tensor table as the file has it, except for the order of dimensions."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int


def _read_tensor_table(cursor: _Cursor, num_tensors: int) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for index in range(num_tensors):
        name = cursor.string(f"the name of tensor {index}", _MAX_NAME_BYTES)
        if not name:
            cursor.malformed(f"tensor {index} has an empty name")
        if name in entries:
            cursor.malformed(f"tensor {name!r} occurs twice")
        what = f"the table entry of tensor {name!r}"
        num_dims: int = cursor.number(_U32, what)
        if not 1 <= num_dims <= _MAX_DIMS:
            cursor.malformed(f"tensor {name!r} has {num_dims} dimensions; 1 to {_MAX_DIMS} allowed")
        dims = [cursor.number(_U64, what) for _ in range(num_dims)]
        type_id: int = cursor.number(_U32, what)
        offset: int = cursor.number(_U64, what)
        shape = tuple(reversed(dims))
        entries[name] = _Entry(name, shape, _ggml_type(type_id, name, cursor), offset)
    return list(entries.values())


def _ggml_type(type_id: int, name: str, cursor: _Cursor) -> GGMLType:
    if type_id in GGML_TYPES:
        return GGML_TYPES[type_id]
    if type_id in REMOVED_GGML_TYPES:
        raise UnsupportedTensorTypeError(
            f"{cursor.path}: tensor {name!r} is stored as {REMOVED_GGML_TYPES[type_id]}, which "
            "GGML has withdrawn; convert the model again"
        )
    raise UnsupportedTensorTypeError(
        f"{cursor.path}: tensor {name!r} has the unknown GGML type {type_id}; ids up to "
        f"{max(GGML_TYPES)} are known. The file is newer than this version of Glimmer, or damaged"
    )


def _place(entry: _Entry, data_start: int, alignment: int, cursor: _Cursor) -> TensorInfo:
    """Checks an entry's sizes against its type and the file, and makes its offset absolute."""
    name, shape, kind = entry.name, entry.shape, entry.type
    num_elements = math.prod(shape)
    if not 1 <= num_elements <= _MAX_ELEMENTS:
        cursor.malformed(
            f"tensor {name!r} has the impossible shape {list(shape)}: {num_elements} elements"
        )
    if shape[-1] % kind.block_size:
        cursor.malformed(
            f"tensor {name!r} of type {kind.name} has rows of {shape[-1]} elements, "
            f"not a multiple of the type's block of {kind.block_size}"
        )
    if entry.offset % alignment:
        cursor.malformed(
            f"tensor {name!r} lies at offset {entry.offset}, "
            f"which is not a multiple of the alignment {alignment}"
        )
    size_bytes = num_elements // kind.block_size * kind.block_bytes
    offset = data_start + entry.offset
    if offset + size_bytes > cursor.size:
        cursor.malformed(
            f"tensor {name!r} needs bytes {offset} to {offset + size_bytes}, but the file has "
            f"{cursor.size}; it is truncated or damaged: download it again"
        )
    return TensorInfo(name, shape, kind.name, offset, size_bytes)


def _refuse_overlaps(tensors: dict[str, TensorInfo], cursor: _Cursor) -> None:
    in_file_order = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for first, second in itertools.pairwise(in_file_order):
        if first.offset + first.size_bytes > second.offset:
            cursor.malformed(
                f"tensors {first.name!r} and {second.name!r} overlap: bytes {first.offset} to "
                f"{first.offset + first.size_bytes} and from {second.offset}"
            )
