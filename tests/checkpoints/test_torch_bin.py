"""PyTorch's files without PyTorch: both formats, and what is wrong with some."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer.checkpoints.torch_bin import TorchFile
from glimmer.errors import CheckpointError, UnsafeCheckpointError
from tests.support import hf_folder as hf

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.arange(5, dtype=np.int8)


def opened(tmp_path: Path, data: bytes) -> TorchFile:
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    return TorchFile(path)


def array(file: TorchFile, name: str) -> Any:
    info = file.tensors[name]
    return file.read(name).view(info.dtype).reshape(info.shape)


@pytest.mark.parametrize("make", [hf.zip_bytes, hf.legacy_bytes])
def test_both_formats(tmp_path: Path, make: Any) -> None:
    file = opened(tmp_path, make({"a": A, "b": B}))
    np.testing.assert_array_equal(array(file, "a"), A)
    np.testing.assert_array_equal(array(file, "b"), B)
    file.release("a")
    np.testing.assert_array_equal(array(file, "a"), A)


@pytest.mark.parametrize("make", [hf.zip_bytes, hf.legacy_bytes])
def test_views_of_one_storage(tmp_path: Path, make: Any) -> None:
    legacy = make is hf.legacy_bytes
    body = hf.state_dict(
        {
            "whole": hf.tensor(A, "0", legacy=legacy),
            "tied": hf.tensor(A, "0", legacy=legacy),
            "rows": hf.tensor(A, "0", legacy=legacy, offset=4, shape=(2, 4)),
            "turned": hf.tensor(A, "0", legacy=legacy, shape=(4, 3), strides=(1, 4)),
            "column": hf.tensor(A, "0", legacy=legacy, offset=1, shape=(3,), strides=(4,)),
            "one": hf.tensor(A, "0", legacy=legacy, offset=7, shape=(), strides=()),
            "none": hf.tensor(A, "0", legacy=legacy, shape=(0, 4)),
        }
    )
    file = opened(tmp_path, make({"": A}, body))
    for name, expected in {
        "whole": A, "tied": A, "rows": A[1:], "turned": A.T, "column": A[:, 1],
        "one": A[1, 3], "none": A[:0],
    }.items():  # fmt: skip
        np.testing.assert_array_equal(array(file, name), expected)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_weights_beside_other_things(tmp_path: Path, wrapper: str) -> None:
    inner = hf.state_dict({"a": hf.tensor(A, "0")})
    body = hf.state_dict({"epoch": hf.number(3), wrapper: inner, "rest": b"]"})
    np.testing.assert_array_equal(array(opened(tmp_path, hf.zip_bytes({"a": A}, body)), "a"), A)


BROKEN: dict[str, tuple[bytes, str]] = {
    "compressed": (hf.zip_bytes({"a": A}, compression=zipfile.ZIP_DEFLATED), "compressed"),
    "big endian": (hf.zip_bytes({"a": A}, byteorder=b"big"), "big endian"),
    "legacy big endian": (hf.legacy_bytes({"a": A}, little=False), "big endian"),
    "no tensors": (hf.zip_bytes({}, b"}"), "0 dictionaries"),
    "two dictionaries": (
        hf.zip_bytes({"a": A}, hf.state_dict({
            "a": hf.tensor(A, "0"), "model": hf.state_dict({"a": hf.tensor(A, "0")}),
        })),
        "2 dictionaries",
    ),
    "no storage": (hf.zip_bytes({}, hf.state_dict({"a": hf.tensor(A, "0")})), "no entry"),
    "small storage": (
        hf.zip_bytes({"a": A}, hf.state_dict({"a": hf.tensor(A, "0", count=99)})), "too few",
    ),
    "beyond": (
        hf.zip_bytes({"a": A}, hf.state_dict({"a": hf.tensor(A, "0", offset=1)})), "beyond",
    ),
    "expanded": (
        hf.zip_bytes({"a": A}, hf.state_dict({
            "a": hf.tensor(A, "0", shape=(1 << 20, 1 << 20), strides=(0, 0)),
        })),
        "beyond",
    ),
    "strides": (
        hf.zip_bytes({"a": A}, hf.state_dict({"a": hf.tensor(A, "0", strides=(-4, 1))})), "-4",
    ),
    "cut zip": (hf.zip_bytes({"a": A})[:-30], "zip archive"),
    "cut legacy": (hf.legacy_bytes({"a": A})[:-4], "beyond the file"),
    "empty zip": (b"PK\x03\x04" + bytes(40), "zip archive"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(tmp_path: Path, name: str) -> None:
    data, words = BROKEN[name]
    with pytest.raises(CheckpointError, match=words):
        opened(tmp_path, data)


@pytest.mark.parametrize("make", [hf.zip_bytes, hf.legacy_bytes])
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(tmp_path: Path, make: Any) -> None:
    canary = tmp_path / "canary"
    body = hf.call(hf.name("posix", "system"), hf.text(f"touch {canary}"))
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system.*nothing was run"):
        opened(tmp_path, make({"a": A}, body))
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_what_pytorch_writes(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    base = torch.randn(4, 6)
    tensors = {
        "half": base.half(), "bfloat": base.bfloat16(), "turned": base.t(), "rows": base[1:3],
        "int8": torch.arange(5, dtype=torch.int8), "one": torch.tensor(3.0),
        "none": torch.zeros(0, 3), "parameter": torch.nn.Parameter(base.clone()), "same": base,
    }  # fmt: skip
    path = tmp_path / "m.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    file = TorchFile(path)
    assert set(file.tensors) == set(tensors)
    for name, value in tensors.items():
        assert file.tensors[name].shape == tuple(value.shape)
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        assert file.read(name).tobytes() == flat.numpy().tobytes()
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError, match="Linear"):
        TorchFile(path)
