"""Writes tiny Hugging Face folders, correct ones and, piece by piece, damaged ones. For tests only.

Written from the formats' descriptions, not from the readers: type names are repeated here on
purpose. Pickles are put together by hand, an instruction at a time (pickletools names them all).
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CONFIG: Mapping[str, Any] = {"model_type": "tiny", "hidden_size": 2}
SAFETENSORS_TYPES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int8": "I8",
    "uint8": "U8", "int16": "I16", "int32": "I32", "int64": "I64", "bool": "BOOL",
}  # fmt: skip
STORAGES = {
    "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage", "int8": "CharStorage", "uint8": "ByteStorage",
    "int16": "ShortStorage", "int32": "IntStorage", "int64": "LongStorage", "bool": "BoolStorage",
}  # fmt: skip
ITEM_BYTES = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "uint8": 1, "int16": 2,
    "int32": 4, "int64": 8, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor as a file has it, rows in order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def stored(array: Any) -> Stored:
    array = np.asarray(array)
    return Stored(array.dtype.name, array.shape, array.tobytes())


# safetensors


def raw_safetensors(header: Any, data: bytes = b"") -> bytes:
    """A file of any header: what is not bytes is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_bytes(tensors: Mapping[str, Stored]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        end = len(data) + len(tensor.data)
        header[name] = {
            "dtype": SAFETENSORS_TYPES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [len(data), end],
        }
        data += tensor.data
    return raw_safetensors(header, data)


# Pickles

MARK, STOP, NONE, EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE = b"(", b".", b"N", b"}", b"]", b")"
REDUCE, BUILD, APPEND, APPENDS, SETITEM, SETITEMS = b"R", b"b", b"a", b"e", b"s", b"u"
TUPLE, TUPLE1, TUPLE2, TUPLE3, BINPERSID, FALSE = b"t", b"\x85", b"\x86", b"\x87", b"Q", b"\x89"


def program(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + STOP


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(items: Iterable[bytes]) -> bytes:
    return MARK + b"".join(items) + TUPLE


def dict_of(items: Mapping[str, bytes]) -> bytes:
    pairs = b"".join(text(key) + value for key, value in items.items())
    return EMPTY_DICT + MARK + pairs + SETITEMS


def global_(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def put(index: int) -> bytes:
    return b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)


def ordered_dict(items: Mapping[str, bytes]) -> bytes:
    """As Python 3 writes one, with the versions of the modules that PyTorch adds."""
    pairs = b"".join(text(key) + value for key, value in items.items())
    made = global_("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE
    versions = EMPTY_DICT + text("_metadata") + made + SETITEM
    return made + MARK + pairs + SETITEMS + versions + BUILD


# PyTorch's files


@dataclass(frozen=True)
class Part:
    """A tensor as a pickle has it: a part of a storage, counted in elements."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    """Those of rows in order unless given."""
    offset: int = 0
    num_elements: int | None = None
    """Of the storage; as many as the tensor has unless given."""
    is_parameter: bool = False
    view: int | None = None
    """The storage's first element, in files of before 1.6 in which it is a view."""

    def pickled(self, legacy: bool) -> bytes:
        count = math.prod(self.shape) if self.num_elements is None else self.num_elements
        storage = [
            text("storage"), global_("torch", STORAGES[self.dtype]), text(self.key), text("cpu"),
            number(count),
        ]  # fmt: skip
        if legacy:
            view = [text("view"), number(self.view or 0), number(count)]
            storage.append(NONE if self.view is None else tuple_of(view))
        strides = rows_in_order(self.shape) if self.strides is None else self.strides
        arguments = [
            tuple_of(storage) + BINPERSID, number(self.offset), tuple_of(map(number, self.shape)),
            tuple_of(map(number, strides)), FALSE, ordered_dict({}),
        ]  # fmt: skip
        made = global_("torch._utils", "_rebuild_tensor_v2") + tuple_of(arguments) + REDUCE
        if not self.is_parameter:
            return made
        around = [made, FALSE, ordered_dict({})]
        return global_("torch._utils", "_rebuild_parameter") + tuple_of(around) + REDUCE


def rows_in_order(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def state_dict(parts: Mapping[str, Part], legacy: bool = False) -> bytes:
    return ordered_dict({name: part.pickled(legacy) for name, part in parts.items()})


def zip_file(
    pickled: bytes,
    storages: Mapping[str, bytes] = {},
    *,
    root: str = "archive",
    byteorder: bytes | None = b"little",
    compression: int = zipfile.ZIP_STORED,
    zip64: bool = False,
) -> bytes:
    """As PyTorch writes since 1.6, around the program of ``data.pkl``."""
    entries = {"data.pkl": pickled, "version": b"3\n"}
    if byteorder is not None:
        entries["byteorder"] = byteorder
    entries |= {f"data/{key}": data for key, data in storages.items()}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, data in entries.items():
            with archive.open(f"{root}/{name}", "w", force_zip64=zip64) as entry:
                entry.write(data)
    return made.getvalue()


def legacy_file(
    pickled: bytes,
    storages: Mapping[str, tuple[int, bytes]] = {},
    *,
    little_endian: bool = True,
) -> bytes:
    """As PyTorch wrote before 1.6. ``storages`` by key: number of elements, bytes."""
    endian = b"\x88" if little_endian else FALSE
    machine = dict_of({"protocol_version": number(1001), "little_endian": endian})
    keys = EMPTY_LIST + MARK + b"".join(map(text, storages)) + APPENDS
    head = [number(0x1950A86A20F9469CFC6C), number(1001), machine]
    return b"".join(
        [
            *map(program, head),
            pickled,
            program(keys),
            *(struct.pack("<Q", count) + data for count, data in storages.values()),
        ]
    )


def _parts(tensors: Mapping[str, Stored]) -> dict[str, Part]:
    """Each in a storage of its own, as most are."""
    return {
        name: Part(str(i), tensor.dtype, tensor.shape)
        for i, (name, tensor) in enumerate(tensors.items())
    }


def zip_bytes(tensors: Mapping[str, Stored]) -> bytes:
    datas = {str(i): tensor.data for i, tensor in enumerate(tensors.values())}
    return zip_file(program(state_dict(_parts(tensors))), datas)


def legacy_bytes(tensors: Mapping[str, Stored]) -> bytes:
    storages = {
        str(i): (math.prod(tensor.shape), tensor.data) for i, tensor in enumerate(tensors.values())
    }
    return legacy_file(program(state_dict(_parts(tensors), legacy=True)), storages)


# Folders

WRITERS = {"safetensors": safetensors_bytes, "zip": zip_bytes, "legacy": legacy_bytes}
_NAMES = {
    "safetensors": ("model", "safetensors"),
    "zip": ("pytorch_model", "bin"),
    "legacy": ("pytorch_model", "bin"),
}


def write_folder(
    folder: Path,
    *shards: Mapping[str, Stored],
    kind: str = "safetensors",
    index: bool = True,
    config: Mapping[str, Any] | None = CONFIG,
) -> Path:
    """config.json and weights: one file, or a numbered file for each of several ``shards``."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        write_json(folder / "config.json", config)
    stem, suffix = _NAMES[kind]
    if len(shards) == 1:
        (folder / f"{stem}.{suffix}").write_bytes(WRITERS[kind](shards[0]))
        return folder
    weight_map = {}
    for i, tensors in enumerate(shards, 1):
        name = f"{stem}-{i:05}-of-{len(shards):05}.{suffix}"
        (folder / name).write_bytes(WRITERS[kind](tensors))
        weight_map.update(dict.fromkeys(tensors, name))
    if index:
        write_index(folder / f"{stem}.{suffix}.index.json", weight_map)
    return folder


def write_index(path: Path, weight_map: Mapping[str, Any]) -> None:
    write_json(path, {"metadata": {"total_size": 0}, "weight_map": weight_map})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
