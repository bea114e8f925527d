"""What is written as GGUF is what we and others read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer.checkpoints import open_checkpoint
from glimmer.checkpoints.atomic import new_file
from glimmer.checkpoints.gguf_writer import NewTensor, gguf_size, write_gguf

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
