"""A PyTorch checkpoint (.bin, .pt) without PyTorch: views of a memory map. Runs nothing.

Two formats, both around a pickle (torch/serialization.py):

    since 1.6  a zip archive, its entries not compressed: NAME/data.pkl, NAME/data/KEY for each
               storage, NAME/byteorder
    before     pickles one after the other: a magic number, the protocol 1001, facts of the machine,
               the object, the list of storage keys; then for each key u64 count and its numbers

The pickles are read by ``safe_pickle``, which knows what weights need and nothing else.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from glimmer.checkpoints.checkpoint import TensorInfo
from glimmer.checkpoints.mapped_file import MappedFile
from glimmer.checkpoints.safe_pickle import MAX_BYTES, MAX_DIMS, PickleReader, Tensor
from glimmer.errors import MalformedCheckpointError

Bytes = npt.NDArray[np.uint8]

_ITEM_BYTES = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "uint8": 1, "int16": 2,
    "int32": 4, "int64": 8, "bool": 1,
}  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LEGACY_HEAD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP_HEAD = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
# The keys under which training scripts put a network's weights beside other things.
_WRAPPERS = ("state_dict", "model", "module")


def is_torch(head: bytes) -> bool:
    """Whether a file that begins with ``head`` looks like one."""
    return head.startswith((_ZIP_HEAD, _LEGACY_HEAD))


@dataclass(frozen=True, slots=True)
class _Run:
    """Where a storage lies in the file."""

    dtype: str
    offset: int
    num_elements: int


class TorchFile:
    """One open file.

    Raises MalformedCheckpointError or UnsafeCheckpointError, naming file and tensor.
    """

    format = "torch"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = file = MappedFile(path)
        value, runs = _read_zip(file) if file.data[:4] == _ZIP_HEAD else _read_legacy(file)
        self._strides: dict[str, tuple[int, ...]] = {}
        tensors = {}
        for name, tensor in _state_dict(value, path).items():
            tensors[name] = info = _place(name, tensor, runs, path)
            if info.size_bytes and not _is_contiguous(tensor):
                self._strides[name] = tuple(n * _ITEM_BYTES[info.dtype] for n in tensor.strides)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)

    def read(self, name: str) -> Bytes:
        """A view of the file; a copy for a tensor that is stored in another order."""
        tensor = self.tensors[name]
        if name not in self._strides:
            return self._file.view(tensor.offset, tensor.size_bytes)
        item = np.dtype((np.void, _ITEM_BYTES[tensor.dtype]))
        strided: npt.NDArray[np.void] = np.ndarray(
            tensor.shape, item, self._file.data, tensor.offset, self._strides[name]
        )
        return np.ascontiguousarray(strided).reshape(-1).view(np.uint8)

    def release(self, name: str) -> None:
        tensor = self.tensors[name]
        if name not in self._strides:
            self._file.release(tensor.offset, tensor.size_bytes)


def _malformed(path: Path, what: str) -> MalformedCheckpointError:
    return MalformedCheckpointError(
        f"{path}: {what}; the file is truncated or damaged, or PyTorch did not write it: download "
        "it again"
    )


def _read_zip(file: MappedFile) -> tuple[Any, dict[str, _Run]]:
    path = file.path
    try:
        archive = zipfile.ZipFile(file.data)  # type: ignore[call-overload]  # it seeks and reads
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError) as error:
        raise _malformed(path, f"the zip archive cannot be read ({error})") from error
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise _malformed(path, "two entries of the zip archive have one name")
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _malformed(path, f"the zip archive has {len(pickles)} entries data.pkl and not one")
    root = pickles[0].removesuffix("data.pkl")

    def bounds(entry: zipfile.ZipInfo) -> tuple[int, int]:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise _malformed(path, f"the entry {entry.filename!r} is compressed or encrypted")
        first = entry.header_offset  # negative where the directory is not where it claims to be
        head = file.data[first : first + _LOCAL_HEADER.size] if first >= 0 else b""
        if len(head) < _LOCAL_HEADER.size or head[:4] != _ZIP_HEAD:
            raise _malformed(path, f"the entry {entry.filename!r} has no header")
        *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(head)
        start = first + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if start + entry.file_size > len(file):
            raise _malformed(path, f"the entry {entry.filename!r} ends beyond the file")
        return start, entry.file_size

    if (order := entries.get(root + "byteorder")) is not None:
        start, size = bounds(order)
        if file.data[start : start + min(size, 8)] != b"little":
            raise _malformed(path, "its numbers are big endian, which is not read")
    start, size = bounds(entries[pickles[0]])
    if size > MAX_BYTES:
        raise _malformed(path, f"data.pkl has {size} bytes, at most {MAX_BYTES} are read")
    reader = PickleReader(file.data[start : start + size], f"{path} ({pickles[0]})")
    value = reader.load()
    runs = {}
    for storage in reader.storages.values():
        entry = entries.get(f"{root}data/{storage.key}")
        if entry is None:
            raise _malformed(path, f"the storage {storage.key!r:.40} has no entry")
        start, size = bounds(entry)
        if size < storage.num_elements * _ITEM_BYTES[storage.dtype]:
            raise _malformed(path, f"the storage {storage.key!r:.40} has {size} bytes, too few")
        runs[storage.key] = _Run(storage.dtype, start, storage.num_elements)
    return value, runs


def _read_legacy(file: MappedFile) -> tuple[Any, dict[str, _Run]]:
    path = file.path
    reader = PickleReader(file.data[:MAX_BYTES], str(path))
    if reader.load() != _LEGACY_MAGIC or reader.load() != _LEGACY_PROTOCOL:
        raise _malformed(path, "it has not the numbers that such a file begins with")
    machine = reader.load()
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _malformed(path, "its numbers are big endian, which is not read")
    value, keys = reader.load(), reader.load()
    if not isinstance(keys, list):
        raise _malformed(path, "the list of its storages is missing")
    runs, position = {}, reader.position
    for key in keys:
        if not isinstance(key, str) or key not in reader.storages:
            raise _malformed(path, "it lists a storage that no tensor uses")
        dtype = reader.storages[key].dtype
        head = file.data[position : position + 8]
        count = int.from_bytes(head, "little")
        position += 8
        size = count * _ITEM_BYTES[dtype]
        if len(head) < 8 or position + size > len(file):
            raise _malformed(path, f"the storage {key!r:.40} ends beyond the file")
        runs[key] = _Run(dtype, position, count)
        position += size
    return value, runs


def _state_dict(value: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name; other entries, such as a step count, are left out."""
    candidates = [value, *(value.get(key) for key in _WRAPPERS if isinstance(value, dict))]
    found = [
        tensors
        for items in candidates
        if isinstance(items, dict)
        and (tensors := {k: t for k, t in items.items() if isinstance(t, Tensor)})
    ]
    if len(found) != 1 or not all(isinstance(name, str) for name in found[0]):
        raise _malformed(
            path,
            f"it holds {len(found)} dictionaries of tensors by name, and not one (at the top or "
            f"under {', '.join(_WRAPPERS)})",
        )
    return found[0]


def _is_contiguous(tensor: Tensor) -> bool:
    due = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != due:
            return False
        due *= size
    return True


def _place(name: str, tensor: Tensor, runs: Mapping[str, _Run], path: Path) -> TensorInfo:
    storage = tensor.storage
    run = runs.get(storage.key)
    if run is None or run.dtype != storage.dtype:
        raise _malformed(path, f"tensor {name!r:.80} has no storage of its type")
    count = math.prod(tensor.shape)
    assert len(tensor.shape) <= MAX_DIMS, "the pickle's reader sees to it"
    first = storage.first_element + tensor.offset
    last = first + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    # As many elements as the storage has at most: a stride of 0 could claim any number of them.
    within = last < run.num_elements if count else first <= run.num_elements
    if count > run.num_elements or not within:
        raise _malformed(
            path,
            f"tensor {name!r:.80} of shape {list(tensor.shape)} reaches beyond its storage of "
            f"{run.num_elements} elements",
        )
    item_bytes = _ITEM_BYTES[run.dtype]
    return TensorInfo(
        name, tensor.shape, run.dtype, run.offset + first * item_bytes, count * item_bytes
    )
