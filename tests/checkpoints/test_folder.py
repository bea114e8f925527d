"""Folders with config.json and weights in one or several files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer.checkpoints import (
    Checkpoint,
    ConfigCheckpoint,
    FolderCheckpoint,
    GGUFCheckpoint,
    TensorInfo,
    open_checkpoint,
)
from glimmer.checkpoints.folder import find_weights
from glimmer.checkpoints.json_file import MAX_BYTES
from glimmer.errors import (
    CheckpointError,
    MalformedCheckpointError,
    ModelNotFoundError,
    UnknownFormatError,
)
from tests.support.gguf_writer import write_gguf
from tests.support.hf_folder import (
    CONFIG,
    WRITERS,
    Stored,
    safetensors_bytes,
    stored,
    write_folder,
    write_index,
    write_json,
    zip_bytes,
)

A = {"a.weight": stored(np.arange(6, dtype=np.float32).reshape(2, 3))}
B = {"b.weight": stored(np.arange(4, dtype=np.float16)), "b.bias": stored(np.int8([1, 2]))}
KINDS = tuple(WRITERS)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1234\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def refused(path: Path, *fragments: str, error: type[Exception] = MalformedCheckpointError) -> None:
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    for fragment in fragments:
        assert fragment in str(caught.value)


# What is read


@pytest.mark.parametrize("index", [True, False], ids=["index", "numbered"])
@pytest.mark.parametrize("shards", [(A,), (A | B,), (A, B)], ids=["one", "one of three", "two"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_read(
    tmp_path: Path, kind: str, shards: tuple[dict[str, Stored], ...], index: bool
) -> None:
    folder = write_folder(tmp_path / "model", *shards, kind=kind, index=index)
    with open_checkpoint(folder) as checkpoint:
        assert isinstance(checkpoint, FolderCheckpoint)
        assert checkpoint.path == folder
        assert checkpoint.format == ("safetensors" if kind == "safetensors" else "torch")
        assert checkpoint.metadata == CONFIG
        expected = {name: tensor for shard in shards for name, tensor in shard.items()}
        assert checkpoint.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            info = checkpoint.tensors[name]
            size = len(tensor.data)
            assert info == TensorInfo(name, tensor.shape, tensor.dtype, info.offset, size)
            data = checkpoint.read(name)
            assert (data.dtype, data.shape, data.tobytes()) == (np.uint8, (size,), tensor.data)
            assert not data.flags.writeable
            checkpoint.release(name)
            assert checkpoint.read(name).tobytes() == tensor.data


def test_it_is_a_checkpoint(tmp_path: Path) -> None:
    checkpoint: Checkpoint = FolderCheckpoint(str(write_folder(tmp_path, A)))
    checkpoint.release_metadata()
    assert checkpoint.metadata == CONFIG


def test_views_survive_close_and_nothing_is_read_after_it(tmp_path: Path) -> None:
    with open_checkpoint(write_folder(tmp_path, A, B)) as checkpoint:
        view = checkpoint.read("a.weight")
    assert view.tobytes() == A["a.weight"].data
    with pytest.raises(AssertionError, match="closed"):
        checkpoint.read("a.weight")
    with pytest.raises(AssertionError, match="closed"):
        checkpoint.release("a.weight")
    checkpoint.close()


def test_a_name_that_is_not_there_is_a_key_error(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path, A))
    with pytest.raises(KeyError, match="nothing"):
        checkpoint.read("nothing")
    with pytest.raises(KeyError, match="nothing"):
        checkpoint.release("nothing")


def test_metadata_and_tensors_cannot_be_changed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path, A))
    with pytest.raises(TypeError):
        checkpoint.metadata["x"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        del checkpoint.tensors["a.weight"]  # type: ignore[attr-defined]


def test_a_tensor_that_no_file_holds_may_be_in_the_index(tmp_path: Path) -> None:
    # As the converter to safetensors leaves tensors that share their numbers.
    folder = write_folder(tmp_path, A, B)
    index = dict.fromkeys(A, SHARDS[0]) | dict.fromkeys(B, SHARDS[1]) | {"tied": SHARDS[0]}
    write_index(folder / INDEX, index)
    assert open_checkpoint(folder).tensors.keys() == A.keys() | B.keys()


def test_shards_may_be_links_to_elsewhere(tmp_path: Path) -> None:
    # A cache of Hugging Face's keeps files by their hash.
    folder = write_folder(tmp_path / "snapshot", A, B)
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(list(folder.iterdir())):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(Path("..") / "blobs" / str(number))
    assert open_checkpoint(folder).read("a.weight").tobytes() == A["a.weight"].data


# Which files are taken


@pytest.mark.parametrize("bin_shards", [(B,), (B, A)], ids=["one", "two"])
@pytest.mark.parametrize("index", [True, False], ids=["index", "numbered"])
@pytest.mark.parametrize("shards", [(A,), (A, B)], ids=["one", "two"])
def test_safetensors_are_taken_before_pytorchs_files(
    tmp_path: Path, shards: Any, bin_shards: Any, index: bool
) -> None:
    write_folder(tmp_path, *bin_shards, kind="zip")
    write_folder(tmp_path, *shards, index=index)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "safetensors"
    assert "a.weight" in checkpoint.tensors


def test_an_index_is_followed_before_anything_else(tmp_path: Path) -> None:
    write_folder(tmp_path, {"other": A["a.weight"]})
    write_folder(tmp_path, A, B)
    assert open_checkpoint(tmp_path).tensors.keys() == A.keys() | B.keys()
    assert [file.name for file in find_weights(tmp_path).files] == list(SHARDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "some.name"])
def test_one_file_stands_for_itself_beside_its_config(tmp_path: Path, kind: str, name: str) -> None:
    folder = write_folder(tmp_path, {"other": A["a.weight"]})
    (folder / name).write_bytes(WRITERS[kind](B))
    checkpoint = open_checkpoint(folder / name)
    assert checkpoint.path == folder
    assert checkpoint.metadata == CONFIG
    assert checkpoint.tensors.keys() == B.keys()


def test_content_decides_and_not_a_name(tmp_path: Path) -> None:
    write_folder(tmp_path, A)
    (tmp_path / "model.safetensors").write_bytes(zip_bytes(A))
    assert open_checkpoint(tmp_path).format == "torch"


def test_a_folder_with_a_config_is_no_gguf_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", {}, {})
    assert isinstance(open_checkpoint(tmp_path), GGUFCheckpoint)
    write_folder(tmp_path, A)
    assert isinstance(open_checkpoint(tmp_path), FolderCheckpoint)


# Files beside the weights


def test_files_beside_the_weights(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", A)
    (folder / "tokenizer.model").touch()
    (folder / "figures").mkdir()
    (folder / "figures" / "a.png").touch()
    (tmp_path / "secret").touch()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.file("tokenizer.model") == folder / "tokenizer.model"
    for name in (
        "absent", "figures", "figures/a.png", "../secret", str(tmp_path / "secret"), "", ".", "..",
        "tokenizer.model/", "nul\0byte", "x" * 300, "half\ud800",
    ):  # fmt: skip
        assert checkpoint.file(name) is None, name


def test_a_config_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    (tmp_path / "tokenizer.model").touch()
    with ConfigCheckpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "config"
        assert checkpoint.metadata == CONFIG
        assert not checkpoint.tensors
        assert checkpoint.file("tokenizer.model") is not None
    assert ConfigCheckpoint(tmp_path / "absent", {"a": 1}).metadata == {"a": 1}
    with pytest.raises(UnknownFormatError, match=r"absent has no config\.json"):
        ConfigCheckpoint(tmp_path / "absent")


# The config


def test_no_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", A, config=None)
    refused(folder, "model has no config.json", "GGUF", error=UnknownFormatError)
    refused(
        folder / "model.safetensors",
        "model.safetensors has no config.json beside it",
        error=UnknownFormatError,
    )


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "is not JSON"),
        (b"[1, 2]", "holds a list"),
        (json.dumps(CONFIG).encode()[:-1], "truncated or damaged"),
        (b'{"hidden_size": 2, "hidden_size": 3}', "the key 'hidden_size' twice"),
        (POINTER, "git lfs pull"),
        (bytes(2 * MAX_BYTES), f"at most {MAX_BYTES} are read"),
    ],
    ids=["empty", "list", "truncated", "key twice", "pointer", "200 MB"],
)
def test_a_config_that_is_none(tmp_path: Path, content: bytes, fragment: str) -> None:
    folder = write_folder(tmp_path, A)
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json", fragment)
    with pytest.raises(MalformedCheckpointError):
        ConfigCheckpoint(folder)


# Weights that are missing


def test_a_config_without_weights(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    (tmp_path / "README.md").touch()
    refused(
        tmp_path, "no weights", "model.safetensors, pytorch_model.bin", error=UnknownFormatError
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("index", "why"), [(True, "index.json lists"), (False, "there must be")], ids=["index", "no"]
)
@pytest.mark.parametrize("missing", [[1], [2], [1, 3]])
def test_a_shard_that_is_missing(
    tmp_path: Path, kind: str, index: bool, why: str, missing: list[int]
) -> None:
    folder = write_folder(tmp_path, A, B, {"c": A["a.weight"]}, kind=kind, index=index)
    (suffix,) = {path.suffix for path in folder.iterdir()} - {".json"}
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = [f"{stem}-{number:05}-of-00003{suffix}" for number in missing]
    for name in names:
        (folder / name).unlink()
    refused(folder, f"{why} 3 files of weights", f"{len(names)} are not there", *names)


def test_many_missing_shards_are_not_all_listed(tmp_path: Path) -> None:
    write_folder(tmp_path, *[{str(i): A["a.weight"]} for i in range(9)])
    for file in tmp_path.glob("*-of-*"):
        file.unlink()
    refused(tmp_path, "9 are not there: model-00001", "model-00003-of-00009.safetensors ...")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (POINTER, "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x80\x04\x95", "a pickle"),
        (bytes(64), "unknown format"),
        (b"GGUF" + bytes(64), "unknown format"),
        (b"{}", "JSON"),
    ],
)
def test_a_shard_that_holds_no_weights(tmp_path: Path, content: bytes, fragment: str) -> None:
    folder = write_folder(tmp_path, A, B)
    (folder / SHARDS[1]).write_bytes(content)
    refused(folder, f"{SHARDS[1]} holds no weights", fragment)


def test_a_shard_that_is_empty_or_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, A, B)
    (folder / SHARDS[1]).write_bytes(b"")
    refused(folder, f"{SHARDS[1]} is an empty file", error=UnknownFormatError)
    (folder / SHARDS[1]).unlink()
    (folder / SHARDS[1]).mkdir()
    refused(folder, f"1 are not there: {SHARDS[1]}")


# Weights that do not fit each other


@pytest.mark.parametrize("index", [True, False])
def test_a_tensor_in_two_files(tmp_path: Path, index: bool) -> None:
    folder = write_folder(tmp_path, A | B, B, index=index)
    refused(folder, "'b.weight' is in", *SHARDS, "mixes two models")


@pytest.mark.parametrize(
    "names",
    [
        ["model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors"],
        ["model-00001-of-00001.safetensors", "pytorch_model-00001-of-00001.safetensors"],
    ],
)
def test_parts_of_several_models(tmp_path: Path, names: list[str]) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    for name in names:
        (tmp_path / name).write_bytes(safetensors_bytes(A))
    refused(tmp_path, "mixes the parts of several models", *names)


@pytest.mark.parametrize("part", ["00000-of-00000", "00000-of-00001", "00002-of-00001"])
def test_parts_that_are_numbered_wrongly(tmp_path: Path, part: str) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    (tmp_path / f"model-{part}.safetensors").write_bytes(safetensors_bytes(A))
    refused(tmp_path, f"model-{part}.safetensors", "numbered from 1")


def test_a_number_of_parts_that_cannot_be(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    (tmp_path / "model-00001-of-99999.safetensors").write_bytes(safetensors_bytes(A))
    refused(tmp_path, "at most 10000")


@pytest.mark.parametrize(
    "name",
    ["model-1-of-1.safetensors", "model-00001-of-00001.safetensors.part", "x-00001-of-00001.bin"],
)
def test_other_files_are_no_parts(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    (tmp_path / name).write_bytes(safetensors_bytes(A))
    refused(tmp_path, "no weights", error=UnknownFormatError)


# The index


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "a"}])
def test_an_index_without_a_map(tmp_path: Path, index: Any) -> None:
    folder = write_folder(tmp_path, A, B)
    write_json(folder / INDEX, index)
    refused(folder, INDEX, "no weight_map")


@pytest.mark.parametrize("content", [POINTER, b"{", b"[]"])
def test_an_index_that_is_none(tmp_path: Path, content: bytes) -> None:
    folder = write_folder(tmp_path, A, B)
    (folder / INDEX).write_bytes(content)
    refused(folder, INDEX)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../secret.safetensors", "a/b.safetensors", "/etc/passwd", "a/",
        "nul\0byte", "x" * 256, "中" * 90, "\x1b[2Jred", "half\ud800", "a\nb", 3, None, ["a"],
    ],
)  # fmt: skip
def test_an_index_that_names_no_file_beside_it(tmp_path: Path, name: Any) -> None:
    folder = write_folder(tmp_path / "model", A, B)
    (tmp_path / "secret.safetensors").write_bytes(safetensors_bytes(A))
    write_index(folder / INDEX, {"a.weight": SHARDS[0], "b.weight": name})
    refused(folder, INDEX, "as the file of 'b.weight'", "must be a file beside the index")
    with pytest.raises(MalformedCheckpointError) as caught:
        open_checkpoint(folder)
    assert str(caught.value).isprintable()


def test_an_index_of_another_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, A, B)
    every = dict.fromkeys(A, SHARDS[0]) | dict.fromkeys(B, SHARDS[1])
    write_index(folder / INDEX, every | {"b.bias": SHARDS[0]})
    refused(folder, "'b.bias' is in " + SHARDS[1], f"{INDEX} says {SHARDS[0]}")
    del every["b.bias"]
    write_index(folder / INDEX, every)
    refused(folder, "'b.bias' is in " + SHARDS[1], f"{INDEX} does not list it")


# The file system


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "nul\0byte", tmp_path / ("x" * 5000)):
        refused(path, str(path), error=ModelNotFoundError)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that may not be looked into, whose file may not be read."""
    folder = write_folder(tmp_path / "model", A)
    (folder / "model.safetensors").chmod(0)
    folder.chmod(0)
    yield folder
    folder.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_what_may_not_be_read(locked: Path) -> None:
    for path in (locked, locked / "model.safetensors"):
        refused(path, "cannot be opened", error=ModelNotFoundError)
    locked.chmod(0o755)
    for path in (locked, locked / "model.safetensors"):
        refused(path, "model.safetensors cannot be opened", error=ModelNotFoundError)


@pytest.mark.parametrize("method", ["stat", "open"])
def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    folder = write_folder(tmp_path / "model", A)

    def failing(self: Path, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, method, failing)
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises((ModelNotFoundError, CheckpointError), match="Permission denied"):
            open_checkpoint(path)
