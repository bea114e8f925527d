"""Each rule of the format, and the library's own reader and writer."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glimmer.checkpoints.safetensors import SafetensorsFile
from glimmer.checkpoints.safetensors_writer import NewTensor, write_safetensors
from glimmer.errors import CheckpointError
from tests.support.hf_folder import raw_safetensors, safetensors_bytes


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


DAMAGED: dict[str, tuple[bytes, str]] = {
    "length": (struct.pack("<Q", 1 << 60) + b"{}", "header claims"),
    "short": (b"\x02\0\0", "header claims"),
    "json": (raw_safetensors(b"{oops", b""), "not JSON"),
    "list": (raw_safetensors([1], b""), "must be an object"),
    "twice": (raw_safetensors(b'{"a": {}, "a": {}}', b""), "twice"),
    "deep": (raw_safetensors(b"[" * 100_000, b""), "not JSON"),
    "entry": (raw_safetensors({"a": 1}, b""), "no entry"),
    "missing": (raw_safetensors({"a": {"dtype": "F32"}}, b""), "no entry"),
    "type": (raw_safetensors({"a": entry(dtype="F31")}, bytes(8)), "F31"),
    "shape": (raw_safetensors({"a": entry(shape=[-2])}, bytes(8)), "shape"),
    "bool": (raw_safetensors({"a": entry(shape=[True])}, bytes(8)), "shape"),
    "huge": (raw_safetensors({"a": entry(shape=[1 << 60])}, bytes(8)), "shape"),
    "product": (raw_safetensors({"a": entry(shape=[3])}, bytes(8)), "has 8 bytes"),
    "beyond": (raw_safetensors({"a": entry(data_offsets=[8, 16])}, bytes(8)), "lies at"),
    "backwards": (raw_safetensors({"a": entry(data_offsets=[8, 0])}, bytes(8)), "lies at"),
    "three": (raw_safetensors({"a": entry(data_offsets=[0, 4, 8])}, bytes(8)), "3 offsets"),
    "dims": (raw_safetensors({"a": entry(shape=[1] * 9 + [2])}, bytes(8)), "10 dimensions"),
    "hole": (raw_safetensors({"a": entry(data_offsets=[4, 12])}, bytes(12)), "hole"),
    "overlap": (raw_safetensors({"a": entry(), "b": entry()}, bytes(8)), "overlaps"),
    "rest": (raw_safetensors({"a": entry()}, bytes(9)), "accounts for"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    data, words = DAMAGED[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


_DTYPES = st.sampled_from(["float32", "float16", "int8", "int64", "uint8"])
_ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
    _DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))),
    max_size=4,
)


@given(_ARRAYS)
def test_what_the_library_writes(tmp_path: Path, arrays: dict[str, Any]) -> None:
    path = tmp_path / "m.safetensors"
    try:
        safetensors.numpy.save_file(arrays, path)
    except UnicodeEncodeError:
        return  # half of a surrogate pair is no name
    for data in (path.read_bytes(), safetensors_bytes(arrays, {"format": "pt"})):
        path.write_bytes(data)
        file = SafetensorsFile(path)
        assert set(file.tensors) == set(arrays)
        for name, array in arrays.items():
            info = file.tensors[name]
            assert (info.dtype, info.shape) == (array.dtype.name, array.shape)
            assert file.read(name).tobytes() == array.tobytes()


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.standard_normal((i + 1, 3)).astype(np.float32) for i in range(5)}
    new = [
        NewTensor(name, "float32", a.shape, lambda a=a: a.view(np.uint8))  # type: ignore[misc]
        for name, a in arrays.items()
    ]
    write_safetensors(tmp_path, new)
    read = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
    (tmp_path / "cut").mkdir()
    write_safetensors(tmp_path / "cut", new, max_shard_bytes=80)
    files = sorted(p.name for p in (tmp_path / "cut").glob("*.safetensors"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
