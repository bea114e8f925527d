from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from glimmer.checkpoints.checkpoint import TensorInfo
from glimmer.checkpoints.safetensors import SafetensorsFile, is_safetensors
from glimmer.checkpoints.safetensors_writer import NewTensor, write_safetensors
from glimmer.errors import (
    CheckpointError,
    MalformedCheckpointError,
    UnsupportedTensorTypeError,
)
from tests.support.hf_folder import raw_safetensors, safetensors_bytes, stored

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def opened(tmp_path: Path, content: bytes) -> SafetensorsFile:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return SafetensorsFile(path)


def refused(tmp_path: Path, content: bytes, *fragments: str) -> None:
    with pytest.raises(MalformedCheckpointError) as caught:
        opened(tmp_path, content)
    for fragment in ("model.safetensors", *fragments):
        assert fragment in str(caught.value)
    assert len(str(caught.value)) < 600


def test_tensors_in_the_order_of_the_header(tmp_path: Path) -> None:
    header = {
        "second": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [8, 12]},
        "__metadata__": {"format": "pt"},
        "first": F32,
        "scalar": {"dtype": "U8", "shape": [], "data_offsets": [12, 13]},
        "empty": {"dtype": "F32", "shape": [3, 0], "data_offsets": [13, 13]},
        "empty in the middle": {"dtype": "I8", "shape": [0], "data_offsets": [8, 8]},
    }
    data = bytes(range(13))
    file = opened(tmp_path, raw_safetensors(header, data))
    start = 8 + len(json.dumps(header))
    assert list(file.tensors.values()) == [
        TensorInfo("second", (2, 1), "bfloat16", start + 8, 4),
        TensorInfo("first", (2,), "float32", start, 8),
        TensorInfo("scalar", (), "uint8", start + 12, 1),
        TensorInfo("empty", (3, 0), "float32", start + 13, 0),
        TensorInfo("empty in the middle", (0,), "int8", start + 8, 0),
    ]
    assert file.read("second").tobytes() == data[8:12]
    assert file.read("empty").size == 0
    assert not file.read("first").flags.writeable
    for name in file.tensors:
        file.release(name)
    assert file.read("first").tobytes() == data[:8]


def test_a_file_of_no_tensors(tmp_path: Path) -> None:
    assert not opened(tmp_path, raw_safetensors({})).tensors
    assert not opened(tmp_path, raw_safetensors(b"{}      ")).tensors


def test_how_a_file_begins() -> None:
    assert is_safetensors(raw_safetensors({}))
    for head in (
        b"", b"{}", bytes(8), raw_safetensors(b"[]"), struct.pack("<Q", 1) + b"{",
        struct.pack("<Q", 100_000_001) + b"{", b"version https",
    ):  # fmt: skip
        assert not is_safetensors(head)


def entry(**changes: Any) -> dict[str, Any]:
    return {"some.weight": {key: item for key, item in (F32 | changes).items() if item != ...}}


MANY = [1] * 100_000
HEADERS: dict[str, tuple[Any, bytes, list[str]]] = {
    "JSON that is none": (b"{,}", b"", ["header of", "is not JSON"]),
    "bytes that are no UTF-8": (b'{"\xff": 1}', b"", ["is not JSON"]),
    "a list": ([1], b"", ["holds a list"]),
    "a name twice": (b'{"a": {}, "a": {}}', b"", ["'a' twice"]),
    "a key twice": (b'{"a": {"dtype": "F32", "dtype": "F16"}}', b"", ["'dtype' twice"]),
    "depth": (b'{"a": ' + b"[" * 400 + b"]" * 400 + b"}", b"", ["levels deep"]),
    "an entry that is a list": ({"w": []}, b"", ["'w'", "no entry of dtype, shape"]),
    "no dtype": (entry(dtype=...), bytes(8), ["'some.weight'", "no entry"]),
    "no shape": (entry(shape=...), bytes(8), ["'some.weight'", "no entry"]),
    "no offsets": (entry(data_offsets=...), bytes(8), ["'some.weight'", "no entry"]),
    "a key more": (entry(more=1), bytes(8), ["'some.weight'", "no entry"]),
    "a shape that is a text": (entry(shape="2"), bytes(8), ["shape '2'"]),
    "a shape that is null": (entry(shape=None), bytes(8), ["shape None"]),
    "a negative size": (entry(shape=[-2]), bytes(8), ["shape [-2]"]),
    "a fraction": (entry(shape=[2.0]), bytes(8), ["shape [2.0]"]),
    "a truth value": (entry(shape=[2, True]), bytes(8), ["shape [2, True]"]),
    "a huge size": (entry(shape=[1 << 60]), bytes(8), ["shape [1152921504606846976]"]),
    "sizes that overflow": (
        entry(shape=[1 << 47] * 8, data_offsets=[0, 0]),
        b"",
        ["'some.weight'", "has 0 bytes"],
    ),
    "many sizes": (entry(shape=MANY), bytes(8), ["'some.weight'", "100000 dimensions"]),
    "many texts": (entry(shape=["x"] * 100_000), bytes(8), ["shape ['x', 'x'"]),
    "nine dimensions": (entry(shape=[1] * 9, data_offsets=[0, 4]), bytes(4), ["9 dimensions"]),
    "one offset": (entry(data_offsets=[0]), bytes(8), ["1 offsets"]),
    "three offsets": (entry(data_offsets=[0, 8, 8]), bytes(8), ["3 offsets"]),
    "a negative offset": (entry(data_offsets=[-8, 0]), bytes(8), ["data_offsets [-8, 0]"]),
    "an offset that is a text": (entry(data_offsets=["0", 8]), bytes(8), ["data_offsets ['0', 8]"]),
    "offsets the wrong way": (entry(data_offsets=[8, 0]), bytes(8), ["bytes 8 to 0"]),
    "an end beyond the file": (entry(data_offsets=[0, 8]), bytes(7), ["bytes 0 to 8 of 7"]),
    "all beyond the file": (entry(data_offsets=[1 << 40, (1 << 40) + 8]), bytes(8), ["of 8"]),
    "too few bytes": (entry(data_offsets=[0, 4]), bytes(4), ["F32 and shape [2] has 4 bytes"]),
    "too many bytes": (entry(data_offsets=[0, 12]), bytes(12), ["shape [2] has 12 bytes"]),
    "a hole at the start": (entry(data_offsets=[4, 12]), bytes(12), ["follows a hole"]),
    "a hole": (
        {"a": F32, "b": F32 | {"data_offsets": [9, 17]}},
        bytes(17),
        ["'b' follows a hole"],
    ),
    "bytes left over": (entry(), bytes(9), ["accounts for"]),
    "an overlap": (
        {"a": F32, "b": F32 | {"data_offsets": [4, 12]}},
        bytes(12),
        ["'b' overlaps another"],
    ),
    "the same place": ({"a": F32, "b": F32}, bytes(8), ["overlaps another"]),
    "an empty one inside another": (
        {"a": F32, "b": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}},
        bytes(8),
        ["overlaps another"],
    ),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_fault_in_the_header_is_named(tmp_path: Path, fault: str) -> None:
    header, data, fragments = HEADERS[fault]
    refused(tmp_path, raw_safetensors(header, data), *fragments)


@pytest.mark.parametrize("kind", ["F4", "f32", "", None, 3, ["F32"], {"F32": 1}, "x" * 1000])
def test_a_type_that_is_not_known(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(UnsupportedTensorTypeError) as caught:
        opened(tmp_path, raw_safetensors(entry(dtype=kind), bytes(8)))
    for fragment in ("model.safetensors", "'some.weight'", "F32, F16, BF16"):
        assert fragment in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("length", [3, 100_000_001, 1 << 62, (1 << 64) - 1])
def test_a_length_that_cannot_be(tmp_path: Path, length: int) -> None:
    refused(tmp_path, struct.pack("<Q", length) + b"{}", f"claims {length} bytes", "has 10")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = safetensors_bytes({"a": stored(np.float32([1])), "b": stored(np.int8([1, 2]))})
    for length in range(1, len(content)):
        refused(tmp_path, content[:length])


@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_is_survived(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(safetensors_bytes({"a": stored(np.float32([1])), "b": stored(np.int8([1]))}))
    for place, byte in changes:
        data[place % len(data)] = byte
    try:
        file = opened(tmp_path, bytes(data))
    except CheckpointError:
        return
    for name, tensor in file.tensors.items():
        assert len(file.read(name)) == tensor.size_bytes


# Against the library


# "__metadata__" is the format's own.
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)
dtypes = st.sampled_from(
    ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
)
shapes = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
some_arrays = dtypes.flatmap(lambda dtype: arrays_of.arrays(dtype, shapes))


@given(st.dictionaries(names, some_arrays, max_size=5))
def test_what_the_library_writes_is_read(
    tmp_path: Path, tensors: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    file = opened(tmp_path, safetensors.numpy.save(dict(tensors)))
    assert file.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        info = file.tensors[name]
        assert (info.shape, info.dtype) == (array.shape, array.dtype.name)
        assert file.read(name).tobytes() == array.tobytes()


writable = st.sampled_from(["float32", "float16", "bfloat16", "int8"])


def new_tensor(name: str, dtype: str, shape: tuple[int, ...], seed: int = 0) -> NewTensor:
    size = NewTensor(name, dtype, shape, lambda: np.zeros(0, np.uint8)).size_bytes
    data = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
    return NewTensor(name, dtype, shape, lambda: data)


@given(
    st.dictionaries(names, st.tuples(writable, shapes), max_size=6),
    st.sampled_from([1, 40, 1 << 30]),
)
def test_what_we_write_is_read_by_the_library_and_by_us(
    tmp_path: Path, specs: dict[str, tuple[str, tuple[int, ...]]], max_shard_bytes: int
) -> None:
    for file in tmp_path.iterdir():
        file.unlink()
    tensors = [new_tensor(name, *spec, i) for i, (name, spec) in enumerate(specs.items())]
    told: list[int] = []
    write_safetensors(tmp_path, tensors, told.append, max_shard_bytes)
    assert told == [tensor.size_bytes for tensor in tensors]
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        ours = SafetensorsFile(path)
        for name, kept in safetensors.deserialize(path.read_bytes()):
            assert name not in found
            found[name] = path.name
            tensor = next(t for t in tensors if t.name == name)
            assert bytes(kept["data"]) == tensor.read().tobytes() == ours.read(name).tobytes()
            assert tuple(kept["shape"]) == tensor.shape == ours.tensors[name].shape
            assert ours.tensors[name].dtype == tensor.dtype
            spelt = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
            assert kept["dtype"] == spelt[tensor.dtype]
    assert found.keys() == specs.keys()
    index = tmp_path / "model.safetensors.index.json"
    if index.exists():
        written = json.loads(index.read_text())
        assert written["weight_map"] == found
        assert written["metadata"] == {"total_size": sum(told)}
    else:
        assert set(found.values()) <= {"model.safetensors"}


def test_shards_are_cut_before_they_grow_too_large(tmp_path: Path) -> None:
    tensors = [new_tensor(f"t{i}", "int8", (size,)) for i, size in enumerate([3, 3, 9, 1, 5, 1])]
    write_safetensors(tmp_path, tensors, max_shard_bytes=6)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [list(SafetensorsFile(file).tensors) for file in files] == [
        ["t0", "t1"], ["t2"], ["t3", "t4"], ["t5"],
    ]  # fmt: skip
    assert files[0].name == "model-00001-of-00004.safetensors"


def test_the_header_keeps_the_data_aligned(tmp_path: Path) -> None:
    for length in range(1, 9):
        write_safetensors(tmp_path, [new_tensor("n" * length, "float32", (2,))])
        file = SafetensorsFile(tmp_path / "model.safetensors")
        assert file.tensors["n" * length].offset % 8 == 0


@pytest.mark.slow
def test_what_we_write_is_read_by_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    tensors = [
        new_tensor("of an odd size", "int8", (3,)),
        new_tensor("b", "bfloat16", (2, 3)),
        new_tensor("scalar", "float32", ()),
        new_tensor("empty", "float16", (0,)),
    ]
    write_safetensors(tmp_path, tensors)
    read = load_file(tmp_path / "model.safetensors")
    for tensor in tensors:
        assert read[tensor.name].dtype == getattr(torch, tensor.dtype)
        assert tuple(read[tensor.name].shape) == tensor.shape
        raw = read[tensor.name].reshape(-1).view(torch.uint8).numpy()
        np.testing.assert_array_equal(raw, tensor.read())
