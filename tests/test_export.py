"""A model in every layout that is written, read back: the same logits, bits and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from glimmer import export, load
from glimmer.architecture import Architecture
from glimmer.checkpoints import open_checkpoint
from glimmer.errors import InvalidParameterError, OutputError
from glimmer.families import all_families
from glimmer.model_source import ModelSource
from glimmer.packed_source import open_source
from glimmer.quantization import quantize
from tests.support import families
from tests.support.tiny_gguf import tiny_gguf

LAYOUTS = [
    ("chatglm", "official"),
    ("chatglm2", "official"),
    ("chatglm3", "official"),
    ("glm4", "official"),
    ("glm4", "native"),
    ("glm4_0414", "native"),
    ("glm45", "native"),
]
CHATS = [
    [{"role": "user", "content": "你好，世界"}],
    [
        {"role": "user", "content": "Hello\n\tthe  fox"},
        {"role": "assistant", "content": "问：你是谁？"},
        {"role": "user", "content": "x"},
    ],
]


def network(family: str, **choices: Any) -> Architecture:
    """Large enough for the tiny tokenizers."""
    return families.tiny_architecture(family, **{"vocab_size": 544, **choices})


def folder(
    tmp_path: Path, family: str, layout: str, dtype: str = "bfloat16", **choices: Any
) -> Path:
    architecture = network(family, **choices)
    if family == "chatglm":
        architecture = with_real_blanks(architecture)
    return families.write_folder(
        tmp_path / f"{family}-{layout}",
        family,
        layout,
        architecture,
        families.tiny_weights(architecture),
        dtype=dtype,
        tokenizer=True,
    )


def with_real_blanks(architecture: Architecture) -> Architecture:
    """The ids that the tiny tokenizer gives to the tokens of the layout."""
    from dataclasses import replace

    from glimmer.architecture import Blanks
    from glimmer.tokenizers import SentencePieceTokenizer, load_model
    from tests.support.tiny_tokenizers import chatglm_model

    data = chatglm_model()
    ids = SentencePieceTokenizer(load_model(data, "tiny"), model_bytes=data).special_tokens
    blanks = Blanks(start_id=ids["<sop>"], blank_ids=(ids["[gMASK]"], ids["[MASK]"]))
    return replace(architecture, blanks=blanks)


def same_model(first: Path, second: Path, family: str, atol: float = 0.0) -> None:
    """Both give the same prompts and, in float32 arithmetic, the same logits."""
    a, b = (load(path, weights="float32", num_threads=1, family=family) for path in (first, second))
    for chat in CHATS:
        ids = a.chat_template.encode(chat)
        assert b.chat_template.encode(chat) == ids
        np.testing.assert_allclose(b.logits(ids), a.logits(ids), atol=atol, rtol=0)
        assert b.tokenizer.decode(ids) == a.tokenizer.decode(ids)
    assert b.stop_token_ids == a.stop_token_ids
    assert b.architecture == a.architecture


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
@pytest.mark.parametrize("to", get_args(export.Format))
def test_conversion_keeps_the_model(
    tmp_path: Path, family: str, layout: str, to: export.Format
) -> None:
    source = folder(tmp_path, family, layout)
    written = export.convert(source, tmp_path / "out", to, family=family)
    assert written.path == tmp_path / "out"
    with open_checkpoint(tmp_path / "out") as checkpoint:  # it is recognised by itself
        assert open_source(checkpoint).family.name == family
    same_model(source, tmp_path / "out", family)


@pytest.mark.parametrize("family", [f for f in all_families() if f != "smollm"])
def test_there_and_back_is_bit_exact(tmp_path: Path, family: str) -> None:
    layout = "native" if (family, "native") in LAYOUTS else "official"
    source = folder(tmp_path, family, layout)
    export.convert(source, tmp_path / "a.gguf", "gguf", family=family)
    export.convert(tmp_path / "a.gguf", tmp_path / "b", "hf", family=family)
    export.convert(tmp_path / "b", tmp_path / "c.gguf", "gguf")
    with open_checkpoint(tmp_path / "a.gguf") as a, open_checkpoint(tmp_path / "c.gguf") as c:
        assert a.tensors.keys() == c.tensors.keys()
        for name in a.tensors.keys() & c.tensors.keys():
            assert a.tensors[name].dtype == c.tensors[name].dtype
            np.testing.assert_array_equal(a.read(name), c.read(name))


def test_the_demo_as_a_folder_and_back(tmp_path: Path) -> None:
    """It is told from GLM-4, whose layout it shares, by its name."""
    source = tiny_gguf(tmp_path / "a.gguf", dtype="float16")
    export.convert(source, tmp_path / "b", "hf")
    export.convert(tmp_path / "b", tmp_path / "c.gguf", "gguf")
    for path in (tmp_path / "b", tmp_path / "c.gguf"):
        same_model(source, path, "smollm")
        with open_checkpoint(path) as checkpoint:
            assert open_source(checkpoint).family.name == "smollm"


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
@pytest.mark.parametrize("to", ["q8_0", "q4_0"])
def test_quantised_files(tmp_path: Path, family: str, layout: str, to: Any) -> None:
    """Every matrix is what its scheme makes of it."""
    source = folder(tmp_path, family, layout)
    written = export.quantize_model(source, tmp_path / "q.gguf", to, family=family)
    assert written.path.stat().st_size == written.size_bytes
    assert to in written.dtypes
    with open_checkpoint(source) as a, open_checkpoint(tmp_path / "q.gguf") as b:
        before, after = ModelSource(a, family), ModelSource(b)
        for name, shape in before.shapes.items():
            kept = after.read(name)
            if len(shape) == 1 or name.endswith("router.weight"):
                assert kept.dtype == "float32"
                continue
            stored = before.read(name)
            floats = np.ascontiguousarray(stored.data).reshape(-1).view(np.uint16)
            weights = (floats.astype(np.uint32) << 16).view(np.float32).reshape(shape)
            assert kept.dtype == to
            np.testing.assert_array_equal(kept.data.reshape(-1), quantize(to, weights))
    ids = load(tmp_path / "q.gguf").chat_template.encode(CHATS[0])
    assert np.isfinite(load(tmp_path / "q.gguf").logits(ids)).all()


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3"])
@pytest.mark.parametrize(("to", "bits"), [("int8", 8), ("int4", 4)])
def test_official_integers(tmp_path: Path, family: str, to: Any, bits: int) -> None:
    source = folder(tmp_path, family, "official", dtype="float16")
    export.quantize_model(source, tmp_path / "q", to)
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert config["quantization_bit"] == bits
    model = load(tmp_path / "q")
    assert model.family == family
    exact = load(source, weights="float32")
    ids = exact.chat_template.encode(CHATS[0])
    error = np.abs(model.logits(ids) - exact.logits(ids)).mean()
    assert 0 < error < {8: 0.3, 4: 3.0}[bits]
    # Read back, the same scales and integers: as GGUF, and from there.
    export.convert(tmp_path / "q", tmp_path / "q.gguf", "gguf")
    np.testing.assert_array_equal(load(tmp_path / "q.gguf").logits(ids), model.logits(ids))


def test_official_integers_are_for_families_that_have_them(tmp_path: Path) -> None:
    source = folder(tmp_path, "glm4", "native")
    with pytest.raises(InvalidParameterError, match=r"no official int4 form.*q4_0"):
        export.quantize_model(source, tmp_path / "q", "int4")


def test_a_type_for_all_weights(tmp_path: Path) -> None:
    source = folder(tmp_path, "glm4", "native")
    written = export.convert(source, tmp_path / "f16", "hf", dtype="float16")
    assert set(written.dtypes) == {"float16"}
    same_model(source, tmp_path / "f16", "glm4", atol=0.05)


def test_refusals_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path, "glm4", "native")
    before = sorted(p.name for p in tmp_path.iterdir())
    for words, call in (
        ("'onnx'", lambda: export.convert(source, tmp_path / "x", "onnx")),  # type: ignore[arg-type]
        ("int3", lambda: export.quantize_model(source, tmp_path / "x", "int3")),  # type: ignore[arg-type]
        ("exists", lambda: export.convert(source, source, "hf")),
    ):  # fmt: skip
        with pytest.raises(InvalidParameterError, match=words):
            call()

    def interrupted(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export.convert(source, tmp_path / "x", "gguf", progress=interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.convert(source, tmp_path / "x", "hf", progress=interrupted)
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    with pytest.raises(OutputError, match="are free"):
        export.convert(source, tmp_path / "x", "hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_trained_prefix_is_written_only_where_there_is_a_place(tmp_path: Path) -> None:
    from tests.support import golden

    source = golden.folder("chatglm2-6b-ptuning")
    with pytest.raises(InvalidParameterError, match="prefix"):
        export.convert(source, tmp_path / "x", "hf")
    with pytest.raises(InvalidParameterError, match="prefix"):
        export.convert(source, tmp_path / "x", "gguf")


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    source = folder(tmp_path, "glm4_0414", "native")
    seen: list[tuple[int, int]] = []
    export.convert(source, tmp_path / "x", "hf", progress=lambda d, t: seen.append((d, t)))
    assert sum(done for done, _ in seen) == seen[-1][1]
