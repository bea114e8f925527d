"""Damaged files of every format: an error that names the place, or a model; nothing else.

No other exception, no end of the process, no memory beyond a few times the file.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer.checkpoints import open_checkpoint
from glimmer.checkpoints.gguf_writer import NewTensor, write_gguf
from glimmer.errors import GlimmerError
from glimmer.tokenizers import (
    SentencePieceTokenizer,
    byte_level_bpe_from_json,
    load_model,
    read_ranks,
)
from tests.support import hf_folder as hf
from tests.support import tiny_tokenizers

pytestmark = pytest.mark.slow
ROUNDS = 1500
MAX_SECONDS = 20
A = np.arange(64, dtype=np.float32).reshape(8, 8)
TENSORS = {
    "a": hf.stored(A),
    "b": hf.stored(A[0].astype(np.float16)),
    "c": hf.stored(A.astype(np.int8)),
}


def damaged(whole: bytes, choose: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(choose.randint(1, 5)):
        at = choose.randrange(len(data) or 1)
        kind = choose.randrange(5)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = bytes(choose.randrange(256) for _ in range(choose.randint(1, 9)))
        elif kind == 2:
            del data[at : at + choose.randint(1, 9)]
        elif data:
            data[at] = choose.choice([0, 1, 0x7F, 0x80, 0xFF, choose.randrange(256)])
        if not data:
            break
    return bytes(data)


def fuzz(whole: bytes, read: Callable[[bytes], Any], seed: int) -> None:
    choose = random.Random(seed)
    read(whole)  # undamaged, it is read
    tracemalloc.start()
    try:
        for number in range(ROUNDS):
            data = damaged(whole, choose)
            tracemalloc.reset_peak()
            start = time.monotonic()
            try:
                read(data)
            except GlimmerError as error:
                assert len(str(error)) < 2000, number  # noqa: PT017
            assert time.monotonic() - start < MAX_SECONDS, number
            assert tracemalloc.get_traced_memory()[1] < 50 * len(whole) + (64 << 20), number
    finally:
        tracemalloc.stop()


def gguf_file(path: Path) -> bytes:
    metadata = {"general.architecture": "some", "x": ["a", "b"], "y": np.arange(9, dtype=np.int32)}
    new = [NewTensor("a", "float32", A.shape, lambda: A.view(np.uint8))]
    with path.open("wb") as stream:
        write_gguf(stream, metadata, new)
    return path.read_bytes()


def read_all(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read(name).sum()


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "zip", "legacy"])
def test_weights(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    whole = {
        "gguf": lambda: gguf_file(tmp_path / "w"),
        "safetensors": lambda: hf.safetensors_bytes(TENSORS),
        "zip": lambda: hf.zip_bytes(TENSORS),
        "legacy": lambda: hf.legacy_bytes(TENSORS),
    }[kind]()
    path = tmp_path / "weights"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_all(path)

    fuzz(whole, read, seed=1)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_beside_the_weights(tmp_path: Path, name: str) -> None:
    folder = hf.write_folder(tmp_path / "m", {"a": hf.stored(A)}, {"b": hf.stored(A)})
    whole = (folder / name).read_bytes()

    def read(data: bytes) -> None:
        (folder / name).write_bytes(data)
        read_all(folder)

    fuzz(whole, read, seed=2)


def use_sentence_piece(data: bytes) -> None:
    tokenizer = SentencePieceTokenizer(load_model(data, "the file"), model_bytes=data)
    ids = tokenizer.encode("你好 the fox\n12 é")
    tokenizer.decode([*ids, *range(min(300, tokenizer.vocab_size))])


@pytest.mark.parametrize(
    ("whole", "read"),
    [
        (tiny_tokenizers.sentence_piece("bpe"), use_sentence_piece),
        (tiny_tokenizers.chatglm_model(), use_sentence_piece),
        (tiny_tokenizers.ranks_file(), lambda data: read_ranks(data, "the file")),
        (
            tiny_tokenizers.tokenizer_json(),
            lambda data: byte_level_bpe_from_json(data, "the file").encode("你好 the fox"),
        ),
    ],
    ids=["bpe", "unigram", "ranks", "json"],
)
def test_tokenizers(whole: bytes, read: Callable[[bytes], Any]) -> None:
    fuzz(whole, read, seed=3)
