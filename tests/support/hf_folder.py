"""Small checkpoints in the formats of Hugging Face and PyTorch, written by hand for tests.

Written from the formats' descriptions, not from the readers.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]
_SAFETENSORS = {"float32": "F32", "float16": "F16", "int8": "I8", "int64": "I64", "uint8": "U8"}
_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int8": "CharStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
}


def safetensors_bytes(tensors: Arrays, metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, array in tensors.items():
        stored = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _SAFETENSORS[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(stored)],
        }
        data += stored
    return raw_safetensors(header, data)


def raw_safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# A pickle, instruction by instruction (protocol 2).


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else long(value)


def long(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(items: Sequence[bytes]) -> bytes:
    return b"(" + b"".join(items) + b"t"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(arguments) + b"R"


def tensor(
    array: npt.NDArray[Any],
    key: str,
    *,
    legacy: bool = False,
    offset: int = 0,
    shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    count: int | None = None,
) -> bytes:
    """_rebuild_tensor_v2 of a storage that holds ``array``."""
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = [int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape))]
    place = [
        text("storage"),
        name("torch", _STORAGES[array.dtype.name]),
        text(key),
        text("cpu"),
        number(array.size if count is None else count),
    ]
    storage = tuple_of([*place, b"N"] if legacy else place) + b"Q"
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage,
        number(offset),
        tuple_of([number(n) for n in shape]),
        tuple_of([number(n) for n in strides]),
        b"\x89",
        call(name("collections", "OrderedDict")),
    )


def state_dict(items: Mapping[str, bytes]) -> bytes:
    pairs = b"".join(text(key) + value for key, value in items.items())
    return call(name("collections", "OrderedDict")) + b"(" + pairs + b"u"


def zip_bytes(
    tensors: Arrays,
    body: bytes | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    byteorder: bytes | None = b"little",
    root: str = "archive",
) -> bytes:
    """What torch.save writes; ``body`` replaces the pickle's."""
    file = io.BytesIO()
    if body is None:
        body = state_dict({n: tensor(a, str(i)) for i, (n, a) in enumerate(tensors.items())})
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", pickled(body))
        if byteorder is not None:
            archive.writestr(f"{root}/byteorder", byteorder)
        for i, array in enumerate(tensors.values()):
            archive.writestr(f"{root}/data/{i}", np.ascontiguousarray(array).tobytes())
        archive.writestr(f"{root}/version", b"3\n")
    return file.getvalue()


def legacy_bytes(tensors: Arrays, body: bytes | None = None, *, little: bool = True) -> bytes:
    """What torch.save wrote before version 1.6."""
    if body is None:
        body = state_dict(
            {n: tensor(a, str(i), legacy=True) for i, (n, a) in enumerate(tensors.items())}
        )
    machine = b"}(" + text("little_endian") + (b"\x88" if little else b"\x89") + b"u"
    keys = b"](" + b"".join(text(str(i)) for i in range(len(tensors))) + b"e"
    parts = [
        pickled(long(0x1950A86A20F9469CFC6C)),
        pickled(b"M" + struct.pack("<H", 1001)),
        pickled(machine),
        pickled(body),
        pickled(keys),
    ]
    for array in tensors.values():
        parts.append(struct.pack("<Q", array.size) + np.ascontiguousarray(array).tobytes())
    return b"".join(parts)


def write_shards(
    folder: Path, shards: Sequence[Arrays], *, index: bool = True, kind: str = "safetensors"
) -> Path:
    """A folder of numbered files with an index of them, and a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "some"}')
    stem = "model" if kind == "safetensors" else "pytorch_model"
    weight_map = {}
    for i, arrays in enumerate(shards, 1):
        file = f"{stem}-{i:05}-of-{len(shards):05}.{kind}"
        data = safetensors_bytes(arrays) if kind == "safetensors" else zip_bytes(arrays)
        (folder / file).write_bytes(data)
        weight_map.update(dict.fromkeys(arrays, file))
    if index:
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
