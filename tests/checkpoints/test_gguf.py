from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer.checkpoints import GGUFCheckpoint, TensorInfo
from glimmer.checkpoints.ggml_types import GGML_TYPES, REMOVED_GGML_TYPES
from glimmer.errors import ModelNotFoundError
from glimmer.quantization import SCHEMES
from tests.support.demo_model import demo_gguf
from tests.support.gguf_writer import TYPE_IDS, write_gguf

MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)
Q2_K_BYTES = bytes(range(84)) * 2
RESIDENT = Path("/proc/self/status")


@pytest.fixture
def small(tmp_path: Path) -> GGUFCheckpoint:
    path = write_gguf(
        tmp_path / "small.gguf",
        {"general.architecture": "llama"},
        {
            "norm.weight": ("float32", (3,), MATRIX[0].tobytes()),
            "head.weight": ("float32", (2, 3), MATRIX.tobytes()),
            "packed.weight": ("q2_k", (2, 256), Q2_K_BYTES),
        },
    )
    return GGUFCheckpoint(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("text, 中文", "text, 中文"),
        ("", ""),
        (True, True),
        (np.uint8(255), 255),
        (np.int8(-128), -128),
        (np.uint16(65535), 65535),
        (np.int16(-5), -5),
        (np.uint32(4294967295), 4294967295),
        (np.int32(-5), -5),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.int64(-(2**63)), -(2**63)),
        (np.float32(0.5), 0.5),
        (np.float64(1e-5), 1e-5),
        (["Ġa", "", "\n"], ["Ġa", "", "\n"]),
        ([], []),
        (np.array([True, False]), [True, False]),
        (np.array([1, 2**64 - 1], np.uint64), [1, 2**64 - 1]),
        (np.array([-1, 7], np.int32), [-1, 7]),
        (np.array([0.25, -2], np.float32), [0.25, -2.0]),
    ],
    ids=lambda item: repr(item)[:24],
)
def test_metadata_values_become_plain_python(
    tmp_path: Path, written: Any, read: Any, version: int
) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"before": 1, "k": written, "after": 2}, {}, version)
    with GGUFCheckpoint(path) as checkpoint:
        assert checkpoint.version == version
        assert checkpoint.metadata == {"before": 1, "k": read, "after": 2}
        found = checkpoint.metadata["k"]
        assert type(found) is type(read)
        if isinstance(found, list):
            assert list(map(type, found)) == list(map(type, read))


def test_tensors_are_row_major_and_keep_the_files_order(small: GGUFCheckpoint) -> None:
    assert list(small.tensors) == ["norm.weight", "head.weight", "packed.weight"]
    head = small.tensors["head.weight"]
    assert head == TensorInfo("head.weight", (2, 3), "float32", head.offset, 24)
    stored = small.path.read_bytes()[head.offset :][: head.size_bytes]
    assert stored == MATRIX.tobytes()
    np.testing.assert_array_equal(small.read("head.weight").view("<f4").reshape(2, 3), MATRIX)


def test_a_type_we_cannot_compute_with_is_listed_and_read_as_bytes(small: GGUFCheckpoint) -> None:
    info = small.tensors["packed.weight"]
    assert (info.dtype, info.shape, info.size_bytes) == ("q2_k", (2, 256), 168)
    assert info.dtype not in SCHEMES
    assert small.read("packed.weight").tobytes() == Q2_K_BYTES


def test_reading_is_a_read_only_view(small: GGUFCheckpoint) -> None:
    first, second = small.read("head.weight"), small.read("head.weight")
    assert first.dtype == np.uint8
    assert not first.flags.writeable
    assert np.shares_memory(first, second)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_views_survive_release_and_close(tmp_path: Path) -> None:
    weights = np.arange(1 << 16, dtype=np.float32)
    path = write_gguf(tmp_path / "w.gguf", {}, {"w": ("float32", (1 << 16,), weights.tobytes())})
    with GGUFCheckpoint(path) as checkpoint:
        view = checkpoint.read("w").view("<f4")
        checkpoint.release("w")
        np.testing.assert_array_equal(view, weights)
    np.testing.assert_array_equal(view, weights)
    with pytest.raises(AssertionError, match="closed"):
        checkpoint.read("w")


@pytest.mark.skipif(not RESIDENT.exists(), reason="the system does not say what is resident")
def test_metadata_can_be_let_go(small: GGUFCheckpoint) -> None:
    assert small.metadata
    small.release_metadata()
    assert not small.metadata
    assert small.tensors


def test_releasing_gives_memory_back(tmp_path: Path) -> None:
    size = 32 << 20
    path = write_gguf(tmp_path / "w.gguf", {}, {"w": ("float32", (size // 4,), bytes(size))})
    with GGUFCheckpoint(path) as checkpoint:
        assert checkpoint.read("w").max() == 0
        loaded = resident_file_bytes()
        checkpoint.release("w")
        assert loaded - resident_file_bytes() > size * 0.9


def resident_file_bytes() -> int:
    lines = dict(line.split(":") for line in RESIDENT.read_text().splitlines())
    return int(lines["RssFile"].split()[0]) * 1024


def test_a_name_that_is_not_there_is_a_key_error(small: GGUFCheckpoint) -> None:
    with pytest.raises(KeyError, match="nothing"):
        small.read("nothing")
    with pytest.raises(KeyError, match="nothing"):
        small.release("nothing")


def test_metadata_and_tensors_cannot_be_changed(small: GGUFCheckpoint) -> None:
    with pytest.raises(TypeError):
        small.metadata["x"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        del small.tensors["head.weight"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_is_the_files_own(tmp_path: Path, alignment: int) -> None:
    tensors = {name: ("float32", (1,), np.float32(n).tobytes()) for n, name in enumerate("ab")}
    path = write_gguf(tmp_path / "a.gguf", {"general.alignment": alignment}, tensors)
    checkpoint = GGUFCheckpoint(path)
    assert all(tensor.offset % alignment == 0 for tensor in checkpoint.tensors.values())
    assert checkpoint.read("b").view("<f4")[0] == 1


def test_a_missing_or_unreadable_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"absent\.gguf: no such file"):
        GGUFCheckpoint(tmp_path / "absent.gguf")
    with pytest.raises(ModelNotFoundError, match="directory"):
        GGUFCheckpoint(tmp_path)
    with pytest.raises(ModelNotFoundError, match="cannot be opened"):
        GGUFCheckpoint(tmp_path / ("x" * 5000))


def test_our_schemes_are_stored_in_the_blocks_that_ggml_says() -> None:
    by_name = {kind.name: kind for kind in GGML_TYPES.values()}
    for scheme in SCHEMES.values():
        kind = by_name[scheme.name]
        assert (kind.block_size, kind.block_bytes) == (scheme.block_size, scheme.block_bytes)


def test_type_ids_have_one_meaning() -> None:
    assert GGML_TYPES.keys().isdisjoint(REMOVED_GGML_TYPES)
    assert sorted({*GGML_TYPES, *REMOVED_GGML_TYPES}) == list(range(43))
    names = [kind.name for kind in GGML_TYPES.values()] + list(REMOVED_GGML_TYPES.values())
    assert len(set(names)) == len(names)
    assert {name: GGML_TYPES[type_id].name for name, type_id in TYPE_IDS.items()} == {
        name: name for name in TYPE_IDS
    }


def test_the_demo_model() -> None:
    with GGUFCheckpoint(demo_gguf()) as checkpoint:
        assert checkpoint.format == "gguf"
        assert checkpoint.metadata["general.architecture"] == "llama"
        assert len(checkpoint.metadata["tokenizer.ggml.tokens"]) == 49152
        assert len(checkpoint.tensors) == 272
        assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {
            "float32",
            "q4_1",
            "q8_0",
        }
        embedding = checkpoint.tensors["token_embd.weight"]
        assert embedding.shape == (49152, 576)
        assert embedding.size_bytes == SCHEMES[embedding.dtype].size_bytes(embedding.shape)
        num_weights = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
        assert num_weights == 134_515_008
