"""A packed folder is the model it was made of, to the bit; a damaged one is refused by name."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import glimmer
from glimmer import export, planning
from glimmer.architecture import Architecture
from glimmer.catalogue import find_release
from glimmer.checkpoints import PackedCheckpoint, open_checkpoint
from glimmer.checkpoints.packed import WEIGHTS_FILE
from glimmer.errors import (
    CheckpointError,
    GlimmerError,
    InvalidParameterError,
    MalformedCheckpointError,
    UnknownFormatError,
)
from glimmer.model_memory import memory_of
from glimmer.native import PACKED_LAYOUT, NativeModel, instruction_sets
from tests.support import golden
from tests.support.tiny_gguf import tiny_gguf
from tests.test_export import CHATS, LAYOUTS, folder

ALL_DTYPES = [
    "float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k",
    "q6_k",
]  # fmt: skip
IDS = [1, 5, 9, 2, 300, 17]


def pack(source: Path, target: Path, **options: Any) -> Path:
    written = export.convert(source, target, "packed", **options)
    assert written.path == target
    return target


def same_logits(
    source: Path, packed: Path, ids: list[int], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    for isa in instruction_sets():
        monkeypatch.setenv("GLIMMER_ISA", isa)
        expected = glimmer.load(source, num_threads=2, **options).logits(ids)
        for in_place in (True, False):
            with monkeypatch.context() as patched:
                adopt_in_place(patched, in_place)
                model = glimmer.load(packed, num_threads=2, **options)
            assert model.native.isa == isa
            np.testing.assert_array_equal(model.logits(ids), expected)


def adopt_in_place(monkeypatch: pytest.MonkeyPatch, in_place: bool) -> None:
    """Whether the system has large pages for such small files is its own affair."""
    adopt = NativeModel.adopt
    monkeypatch.setattr(NativeModel, "adopt", partialmethod(adopt, in_place=in_place))


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_every_type(
    tmp_path: Path, dtype: str, activations: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "tied_head": False}
    source = tiny_gguf(tmp_path / "tiny.gguf", dtype, **wide)
    packed = pack(source, tmp_path / "packed")
    same_logits(source, packed, IDS, monkeypatch, activations=activations)
    for weights in ("float32", "float16", "int8", "int4"):
        same_logits(source, packed, IDS, monkeypatch, weights=weights)


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_every_family(
    tmp_path: Path, family: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases, tied heads, experts, two norms; and what is not weights: prompts and stop ids."""
    source = folder(tmp_path, family, layout)
    packed = pack(source, tmp_path / "packed", family=family)
    a, b = glimmer.load(source, family=family), glimmer.load(packed)
    assert (b.family, b.architecture) == (family, a.architecture)
    assert b.stop_token_ids == a.stop_token_ids
    assert b.sampling == a.sampling
    for chat in CHATS:
        ids = a.chat_template.encode(chat)
        assert b.chat_template.encode(chat) == ids
        assert b.tokenizer.decode(ids) == a.tokenizer.decode(ids)
    same_logits(source, packed, ids, monkeypatch, family=family)


@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
@pytest.mark.parametrize("to", ["int8", "int4"])
def test_official_integers(
    tmp_path: Path, family: str, to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(tmp_path, family, "official", dtype="float16")
    export.quantize_model(source, tmp_path / "integers", to)
    packed = pack(tmp_path / "integers", tmp_path / "packed")
    ids = glimmer.load(packed).chat_template.encode(CHATS[0])
    same_logits(tmp_path / "integers", packed, ids, monkeypatch)


def test_a_trained_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = golden.folder("chatglm2-6b-ptuning")
    packed = pack(source, tmp_path / "packed")
    same_logits(source, packed, [3, 4, 5, 6], monkeypatch)


def test_a_type_for_all_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_gguf(tmp_path / "tiny.gguf", "q8_0")
    packed = pack(source, tmp_path / "packed", dtype="bfloat16")
    with open_checkpoint(packed) as checkpoint:
        assert {t.dtype for t in checkpoint.tensors.values() if len(t.shape) == 2} == {"bfloat16"}
    for isa in instruction_sets():
        monkeypatch.setenv("GLIMMER_ISA", isa)
        expected = glimmer.load(source, weights="bfloat16").logits(IDS)
        np.testing.assert_array_equal(glimmer.load(packed).logits(IDS), expected)


@pytest.mark.parametrize("in_place", [True, False])
def test_the_folder_may_go_while_the_model_runs(
    tmp_path: Path, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt_in_place(monkeypatch, in_place)
    packed = pack(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "packed")
    model = glimmer.load(packed)
    before = model.logits(IDS)
    other = tiny_gguf(tmp_path / "other.gguf", "q8_0")
    pack(other, packed, overwrite=True)
    np.testing.assert_array_equal(model.logits(IDS), before)
    shutil.rmtree(packed)
    np.testing.assert_array_equal(model.logits(IDS), before)


def test_weights_lie_in_the_file(tmp_path: Path) -> None:
    """None is copied, and so none takes memory of its own."""
    source = tiny_gguf(tmp_path / "tiny.gguf")
    packed = pack(source, tmp_path / "packed")
    assert glimmer.load(packed).weights_bytes == glimmer.load(source).weights_bytes
    with open_checkpoint(packed) as checkpoint:
        for tensor in checkpoint.tensors.values():
            assert tensor.offset % 64 == 0
    size = (packed / WEIGHTS_FILE).stat().st_size
    a, b = (memory_of(path, context=64).plan for path in (source, packed))
    assert (a.weights, a.running) == (b.weights, b.running)
    assert a.loading > b.loading == b.weights
    assert b.weights < size
    c = memory_of(packed, context=64, weights="int8").plan
    embedding = planning.packed_bytes("q4_0", (glimmer.load(packed).architecture.vocab_size, 64))
    assert c.loading >= c.weights
    assert c.loading >= embedding


def test_the_release_goes_along(tmp_path: Path) -> None:
    release = find_release("demo")
    assert release is not None
    source = tiny_gguf(tmp_path / "tiny.gguf")
    packed = pack(source, tmp_path / "packed")
    assert glimmer.load(packed).release is None
    change(packed, lambda metadata: metadata | {"release": "demo"})
    model = glimmer.load(packed)
    assert model.release == release
    assert model.notice == release.notice
    assert release.title in glimmer.inspect(packed).name
    change(packed, lambda metadata: metadata | {"release": "of another catalogue"})
    assert glimmer.load(packed).release is None


def test_it_is_not_written_in_other_forms(tmp_path: Path) -> None:
    packed = pack(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "packed")
    for to in ("hf", "gguf", "packed"):
        with pytest.raises(InvalidParameterError, match="packed for the engine"):
            export.convert(packed, tmp_path / "x", to)  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="packed for the engine"):
        export.quantize_model(packed, tmp_path / "x", "q8_0")
    assert not (tmp_path / "x").exists()


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "tiny.gguf")
    before = sorted(p.name for p in tmp_path.iterdir())

    def interrupted(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export.convert(source, tmp_path / "x", "packed", progress=interrupted)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    pack(source, tmp_path / "x")
    with pytest.raises(InvalidParameterError, match="exists"):
        export.convert(source, tmp_path / "x", "packed")
    with pytest.raises(KeyboardInterrupt):
        export.convert(source, tmp_path / "x", "packed", overwrite=True, progress=interrupted)
    assert glimmer.load(tmp_path / "x").logits([1]).shape[0] == 1


def test_side_files_go_along_and_weights_do_not(tmp_path: Path) -> None:
    source = folder(tmp_path, "glm4", "native")
    (source / "LICENSE").write_text("as is")
    (source / ".notes").write_text("mine")
    (source / "modeling.py").write_text("raise SystemExit")
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(_names(source), "model.safetensors")})
    )
    packed = pack(source, tmp_path / "packed", family="glm4")
    names = {file.name for file in packed.iterdir()}
    assert {"config.json", "LICENSE", WEIGHTS_FILE} <= names
    left = {".notes", "modeling.py", "model.safetensors", "model.safetensors.index.json"}
    assert not left & names


def _names(source: Path) -> list[str]:
    with open_checkpoint(source) as checkpoint:
        return list(checkpoint.tensors)


Metadata = dict[str, Any]


def parts(packed: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of the file of weights."""
    whole = (packed / WEIGHTS_FILE).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def change(
    packed: Path, metadata: Callable[[Metadata], Metadata], header: Metadata | None = None
) -> None:
    """The same file with other metadata, and other entries of tensors."""
    old, data = parts(packed)
    new = old | (header or {}) | {"__metadata__": metadata(old["__metadata__"])}
    text = json.dumps({k: v for k, v in new.items() if v is not None}).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    file = packed / WEIGHTS_FILE
    file.unlink()  # a new file: the old one may be mapped
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def with_json(key: str, edit: Callable[[Any], Any]) -> Callable[[Metadata], Metadata]:
    return lambda metadata: metadata | {key: json.dumps(edit(json.loads(metadata[key])))}


def without(key: str) -> Callable[[Metadata], Metadata]:
    return lambda metadata: {k: v for k, v in metadata.items() if k != key}


EMBEDDING = "embedding.weight"
REFUSALS: list[tuple[type[GlimmerError], str, Callable[[Metadata], Metadata]]] = [
    (UnknownFormatError, "no packed weights", lambda m: m | {"format": "pt"}),
    (
        UnknownFormatError,
        f"layout 9, but this version of Glimmer runs layout {PACKED_LAYOUT}.*--to packed --force",
        lambda m: m | {"layout_version": "9"},
    ),
    (MalformedCheckpointError, "family", without("family")),
    (MalformedCheckpointError, "architecture", without("architecture")),
    (MalformedCheckpointError, "weights", lambda m: m | {"weights": "[]"}),
    (MalformedCheckpointError, "not JSON", lambda m: m | {"weights": "{"}),
    (MalformedCheckpointError, "listed", with_json("weights", lambda w: w | {"x": w[EMBEDDING]})),
    (MalformedCheckpointError, "described", with_json("weights", lambda w: w | {EMBEDDING: 3})),
    (
        MalformedCheckpointError,
        "described",
        with_json("weights", lambda w: w | {EMBEDDING: ["q3_x", *w[EMBEDDING][1:]]}),
    ),
    (
        MalformedCheckpointError,
        "should have 7 bytes",
        with_json("weights", lambda w: w | {EMBEDDING: [*w[EMBEDDING][:2], 7]}),
    ),
    (
        MalformedCheckpointError,
        "has shape",
        with_json("weights", lambda w: w | {EMBEDDING: ["q4_0", [32, 64], w[EMBEDDING][2]]}),
    ),
    (
        MalformedCheckpointError,
        "takes",
        with_json("weights", lambda w: w | {EMBEDDING: ["q8_0", *w[EMBEDDING][1:]]}),
    ),
    (
        MalformedCheckpointError,
        "float32 alone|takes",
        with_json("weights", lambda w: w | {"final_norm.weight": ["float16", [64], 256]}),
    ),
    (
        MalformedCheckpointError,
        "num_layers must be of type int",
        with_json("architecture", lambda a: a | {"num_layers": "two"}),
    ),
    (
        MalformedCheckpointError,
        "unknown fields or lacks some: depth",
        with_json("architecture", lambda a: a | {"depth": 2}),
    ),
    (
        MalformedCheckpointError,
        "rope's pairing must be one of",
        with_json("architecture", lambda a: a | {"rope": a["rope"] | {"pairing": "odd"}}),
    ),
    (
        MalformedCheckpointError,
        "claims 1000000000 layers",
        with_json("architecture", lambda a: a | {"num_layers": 10**9}),
    ),
    (
        MalformedCheckpointError,
        "lacks the weight",
        with_json("architecture", lambda a: a | {"num_layers": 3}),
    ),
    (
        MalformedCheckpointError,
        "beyond its network",
        with_json("architecture", lambda a: a | {"num_layers": 1}),
    ),
    (
        GlimmerError,
        "num_heads|has shape",
        with_json("architecture", lambda a: a | {"num_heads": 0}),
    ),
    (GlimmerError, "no family", lambda m: m | {"family": "of another version"}),
]


@pytest.mark.parametrize(("error", "words", "edit"), REFUSALS)
def test_refusals(
    tmp_path: Path,
    error: type[GlimmerError],
    words: str,
    edit: Callable[[Metadata], Metadata],
) -> None:
    packed = pack(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "packed")
    change(packed, edit)
    with pytest.raises(error, match=words) as caught:
        glimmer.load(packed)
    assert any(word in str(caught.value) for word in ("packed", "family", "Weight", "num_heads"))


def test_misplaced_weights_are_refused(tmp_path: Path) -> None:
    packed = pack(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "packed")
    header, _ = parts(packed)
    first, second = list(header)[1:3]
    cut = header[first]["data_offsets"][1] - 32
    length = header[second]["data_offsets"][1] - cut
    change(
        packed,
        lambda m: m,
        {
            first: {"dtype": "U8", "shape": [cut], "data_offsets": [0, cut]},
            second: {"dtype": "U8", "shape": [length], "data_offsets": [cut, cut + length]},
        },
    )
    with pytest.raises(MalformedCheckpointError, match=r"begins at byte|should have"):
        glimmer.load(packed)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    packed = pack(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "packed")
    file = packed / WEIGHTS_FILE
    whole = file.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 100, 8, 1):
        file.unlink()
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=WEIGHTS_FILE):
            glimmer.load(packed)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(os, "pidfd_open"), reason="needs MADV_POPULATE_READ"
)
def test_a_file_that_becomes_shorter_before_it_is_loaded(tmp_path: Path) -> None:
    """Its pages are asked for with a call that can fail, not touched."""
    source = tiny_gguf(tmp_path / "tiny.gguf", "float32", hidden_size=256, head_dim=64)
    packed = pack(source, tmp_path / "packed")
    with open_checkpoint(packed) as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        architecture = Architecture.from_values(checkpoint.architecture)
        native = NativeModel(architecture, 1)
        os.truncate(packed / WEIGHTS_FILE, 8192)
        name = max(checkpoint.tensors, key=lambda n: checkpoint.tensors[n].offset)
        tensor = checkpoint.tensors[name]
        with pytest.raises(MalformedCheckpointError, match="become shorter"):
            native.adopt(name, tensor.dtype, tensor.shape, checkpoint.read(name))


@pytest.mark.parametrize("seed", range(4))
def test_damaged_headers_are_refused_or_run(tmp_path: Path, seed: int) -> None:
    packed = pack(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "packed")
    file = packed / WEIGHTS_FILE
    whole = file.read_bytes()
    length = 8 + len(json.dumps(parts(packed)[0], separators=(",", ":")))
    choose = random.Random(seed)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(length)
            # A digit for a digit is what passes every parser.
            digit = chr(damaged[at]).isdigit()
            damaged[at] = choose.choice(b"0123456789") if digit else choose.randrange(256)
        file.unlink()
        file.write_bytes(damaged)
        try:
            model = glimmer.load(packed, num_threads=1)
            assert model.logits([1, 2]).shape == (2, model.architecture.vocab_size)
        except GlimmerError:
            refused += 1
    assert refused > 20
