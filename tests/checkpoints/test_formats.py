from __future__ import annotations

import os
from pathlib import Path

import pytest

from glimmer.checkpoints import Checkpoint, open_checkpoint
from glimmer.errors import ModelNotFoundError, UnknownFormatError
from tests.support.gguf_writer import write_gguf


def test_a_gguf_file_is_opened_whatever_its_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.bin", {"a": 1}, {})
    checkpoint: Checkpoint = open_checkpoint(str(path))
    assert (checkpoint.path, checkpoint.format, checkpoint.metadata) == (path, "gguf", {"a": 1})


@pytest.mark.parametrize(
    ("content", "looks_like", "advice"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page", "download"),
        (b'{"model_type": "llama"}', "JSON", "weights"),
        (b"\x80\x02}q\x00.", "pickle", "safetensors"),
        (b"tjgg\x03\x00\x00\x00", "GGJT", "convert"),
        (b"\x1f\x8b\x08\x00", "gzip", "unpack"),
        (b"\x00\x01\x02", "00 01 02", "GGUF"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_another_file_is_named_for_what_it_looks_like(
    tmp_path: Path, content: bytes, looks_like: str, advice: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UnknownFormatError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a GGUF file")
    assert looks_like in message
    assert advice in message


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UnknownFormatError, match="empty file; download"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_folder_with_one_gguf_file_stands_for_it(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    path = write_gguf(tmp_path / "some.gguf", {}, {})
    assert open_checkpoint(tmp_path).path == path
    write_gguf(tmp_path / "other.gguf", {}, {})
    with pytest.raises(UnknownFormatError, match=r"several models: other\.gguf, some\.gguf"):
        open_checkpoint(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "nul\0byte"):
        with pytest.raises(ModelNotFoundError):
            open_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnknownFormatError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe")
