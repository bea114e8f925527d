"""Files that appear whole or not at all, and GGUF as others read it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer.checkpoints import open_checkpoint
from glimmer.checkpoints.atomic import new_file, new_folder
from glimmer.checkpoints.gguf_writer import NewTensor, gguf_size, write_gguf
from glimmer.errors import InvalidParameterError, OutputError

METADATA: dict[str, Any] = {
    "general.architecture": "some",
    "a.text": "héllo 你好",
    "a.int": 7,
    "a.large": 1 << 40,
    "a.float": 0.5,
    "a.flag": True,
    "a.texts": ["x", "", "世界"],
    "a.floats": np.array([0.25, 2], np.float32),
    "a.bytes": np.arange(5, dtype=np.uint8),
    "a.ints": np.array([-1, 3], np.int32),
}
MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)
HALFS = np.arange(6, dtype=np.float16).reshape(1, 2, 3)


def tensors() -> list[NewTensor]:
    return [
        NewTensor("a", "float32", MATRIX.shape, lambda: MATRIX.view(np.uint8)),
        NewTensor("b", "float16", HALFS.shape, lambda: HALFS.view(np.uint8)),
        NewTensor("c", "q4_0", (2, 64), lambda: np.arange(72, dtype=np.uint8)),
    ]


def written(path: Path) -> Path:
    with new_file(path) as stream:
        write_gguf(stream, METADATA, tensors())
    assert path.stat().st_size == gguf_size(METADATA, tensors())
    return path


def test_gguf_is_read_back(tmp_path: Path) -> None:
    with open_checkpoint(written(tmp_path / "m.gguf")) as checkpoint:
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in METADATA.items()}
        assert checkpoint.metadata == plain
        assert {n: (t.dtype, t.shape) for n, t in checkpoint.tensors.items()} == {
            "a": ("float32", (3, 4)), "b": ("float16", (1, 2, 3)), "c": ("q4_0", (2, 64)),
        }  # fmt: skip
        for tensor in tensors():
            expected = tensor.read().tobytes()
            assert checkpoint.read(tensor.name).tobytes() == expected


@pytest.mark.slow
def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(written(tmp_path / "m.gguf"))
    for key, value in METADATA.items():
        found = reader.get_field(key).contents()
        assert found == (value.tolist() if isinstance(value, np.ndarray) else value)
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    np.testing.assert_array_equal(by_name["a"].data, MATRIX)
    np.testing.assert_array_equal(by_name["b"].data, HALFS)
    assert by_name["c"].tensor_type.name == "Q4_0"


def leave_nothing(folder: Path) -> None:
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail_in_file() -> None:
        with new_file(tmp_path / "x") as stream:
            stream.write(b"half")
            raise error

    def fail_in_folder() -> None:
        with new_folder(tmp_path / "y") as folder:
            (folder / "z").write_bytes(b"half")
            raise error

    for fail in (fail_in_file, fail_in_folder):
        with pytest.raises(error):
            fail()
    leave_nothing(tmp_path)


def test_what_exists_is_kept_unless_asked(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    with pytest.raises(InvalidParameterError, match="--force"), new_file(target):
        pass
    with new_file(target, overwrite=True) as stream:
        stream.write(b"new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    folder = tmp_path / "y"
    folder.mkdir()
    (folder / "a").write_text("old")
    with pytest.raises(InvalidParameterError, match="--force"), new_folder(folder):
        pass
    with new_folder(folder, overwrite=True) as new:
        (new / "b").write_text("new")
        assert (folder / "a").read_text() == "old"
    assert [p.name for p in folder.iterdir()] == ["b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]


def test_a_full_disk_is_seen_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=99))
    with pytest.raises(OutputError, match="free"), new_file(tmp_path / "x", size_bytes=100):
        pass
    leave_nothing(tmp_path)


def test_a_disk_that_fills_up_is_an_error_of_ours(tmp_path: Path) -> None:
    def fill() -> None:
        with new_file(tmp_path / "x") as stream:
            stream.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"No space left.*Nothing was left"):
        fill()
    leave_nothing(tmp_path)


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    with new_file(tmp_path / "x"):
        pass
    with new_folder(tmp_path / "y"):
        pass
    (tmp_path / "plain").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
