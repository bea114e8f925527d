"""Folders as they come from a hub, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer.checkpoints import ConfigCheckpoint, FolderCheckpoint, open_checkpoint
from glimmer.errors import (
    CheckpointError,
    MalformedCheckpointError,
    ModelNotFoundError,
    UnknownFormatError,
)
from tests.support.hf_folder import legacy_bytes, safetensors_bytes, write_shards, zip_bytes

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(4, dtype=np.float16)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def values(folder: Path, name: str) -> Any:
    with open_checkpoint(folder) as checkpoint:
        info = checkpoint.tensors[name]
        return checkpoint.read(name).view(info.dtype).reshape(info.shape)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_shards(tmp_path: Path, kind: str, index: bool) -> None:
    folder = write_shards(tmp_path / "m", [{"a": A}, {"b": B}], index=index, kind=kind)
    with open_checkpoint(folder) as checkpoint:
        assert isinstance(checkpoint, FolderCheckpoint)
        assert checkpoint.format == {"safetensors": "safetensors", "bin": "torch"}[kind]
        assert set(checkpoint.tensors) == {"a", "b"}
        assert checkpoint.metadata == {"model_type": "some"}
        for name in ("a", "b"):
            checkpoint.release(name)
    np.testing.assert_array_equal(values(folder, "a"), A)
    np.testing.assert_array_equal(values(folder, "b"), B)


@pytest.mark.parametrize("make", [safetensors_bytes, zip_bytes, legacy_bytes])
def test_a_single_file_whatever_its_name(tmp_path: Path, make: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights.part").write_bytes(make({"a": A}))
    np.testing.assert_array_equal(values(tmp_path / "weights.part", "a"), A)


def test_safetensors_win_over_bin(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(zip_bytes({"a": A}))
    assert open_checkpoint(tmp_path).format == "torch"
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({"a": A + 1}))
    np.testing.assert_array_equal(values(tmp_path, "a"), A + 1)


def refuse(
    folder: Path, words: str, kind: type[CheckpointError] = MalformedCheckpointError
) -> None:
    with pytest.raises(kind, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    folder = write_shards(tmp_path / "m", [{"a": A}, {"b": B}, {"c": B}], index=index)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refuse(folder, r"model-00002-of-00003\.safetensors.*incomplete")


def test_damaged_folders(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m", [{"a": A}, {"b": B}])
    shard = folder / "model-00002-of-00002.safetensors"
    index = folder / "model.safetensors.index.json"
    whole = shard.read_bytes()
    shard.write_bytes(LFS)
    refuse(folder, "Git LFS pointer.*git lfs pull")
    shard.write_bytes(safetensors_bytes({"a": A}))
    refuse(folder, "'a' is in .* and in another")
    shard.write_bytes(whole)
    for file in ("../x", "/etc/passwd", "sub/x", "", 3):
        index.write_text(json.dumps({"weight_map": {"a": file}}))
        refuse(folder, "must be a file beside it")
    index.write_text('{"weight_map": {}}')
    refuse(folder, "no weight_map")
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors", "a": "x"}}')
    refuse(folder, "'a' twice")
    index.write_bytes(LFS)
    refuse(folder, "Git LFS pointer")
    index.write_text(json.dumps({"weight_map": {"z": "model-00001-of-00002.safetensors"}}))
    refuse(folder, "'z'")
    index.unlink()
    (folder / "model-00001-of-00009.safetensors").write_bytes(whole)
    refuse(folder, "several models")


def test_configs(tmp_path: Path) -> None:
    refuse(tmp_path, r"no config\.json", UnknownFormatError)
    config = tmp_path / "config.json"
    config.write_text("{}")
    refuse(tmp_path, "no weights", UnknownFormatError)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({"a": A}))
    for content, words in (
        ("[1]", "must be an object"),
        ('{"a": 1', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ("\udcff", "not JSON"),
    ):
        config.write_bytes(content.encode("utf-8", "surrogateescape"))
        refuse(tmp_path, words)
    config.write_bytes(LFS)
    refuse(tmp_path, "Git LFS pointer")
    with config.open("wb") as stream:
        stream.truncate(200 << 20)
    refuse(tmp_path, "at most")


def test_files_beside_the_weights(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m", [{"a": A}])
    (tmp_path / "secret").write_text("x")
    (folder / "tokenizer.model").write_text("x")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.file("tokenizer.model") == folder / "tokenizer.model"
        assert checkpoint.file("tokenizer.json") is None
        for outside in ("../secret", str(tmp_path / "secret"), "..", "."):
            assert checkpoint.file(outside) is None


def test_a_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}')
    checkpoint = ConfigCheckpoint(tmp_path)
    assert (checkpoint.metadata, dict(checkpoint.tensors)) == ({"a": 1}, {})
    assert ConfigCheckpoint("a name", {"b": 2}).metadata == {"b": 2}


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        open_checkpoint(tmp_path / "nothing")
