"""Which models vLLM gets, and in what folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import glimmer
from glimmer.errors import GlimmerError, InvalidParameterError
from glimmer.export import convert
from glimmer.families import all_families
from glimmer.vllm import check_model, check_runs, model_folder
from tests.support.families import tiny_architecture
from tests.test_export import folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3", "glm4", "glm4_0414", "glm45", "smollm"])
def test_what_vllm_runs(family: str) -> None:
    form = check_runs(all_families()[family], tiny_architecture(family))
    assert form.layout == "native"
    config = form.config(
        tiny_architecture(family), dtype="float16", eos_token_ids=(2,), pad_token_id=0
    )
    assert config["architectures"] == [form.model_class]


@pytest.mark.parametrize(
    ("family", "choices", "part"),
    [
        ("chatglm", {}, "prefix mask.*two positions"),
        ("chatglm2", {"prefix_length": 4}, "trained prefix .*P-Tuning"),
    ],
)
def test_what_vllm_does_not_run_is_refused_with_the_reason(
    family: str, choices: dict[str, int], part: str
) -> None:
    architecture = tiny_architecture(family, **choices)
    with pytest.raises(InvalidParameterError, match=part):
        check_runs(all_families()[family], architecture)


def test_nothing_is_written_for_what_it_does_not_run(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    source = folder(tmp_path, "chatglm", "official")
    for refuse in (check_model, lambda path, name: model_folder(path, name, environ)):
        with pytest.raises(InvalidParameterError, match="prefix mask"):
            refuse(str(source), None)
    assert not (tmp_path / "cache").exists()


def test_a_native_folder_is_served_as_it_is(tmp_path: Path, environ: dict[str, str]) -> None:
    source = folder(tmp_path, "glm4_0414", "native")
    assert (source / "tokenizer.json").exists()
    assert model_folder(str(source), "glm4_0414", environ) == source
    assert not (tmp_path / "cache").exists()


def test_another_layout_is_converted_once(tmp_path: Path, environ: dict[str, str]) -> None:
    source = folder(tmp_path, "glm4", "official")
    first = model_folder(str(source), "glm4", environ)
    assert first.parent == tmp_path / "cache" / "glimmer" / "vllm"
    assert json.loads((first / "config.json").read_text())["architectures"] == ["GlmForCausalLM"]
    assert (first / "tokenizer.json").is_file()
    time_of = first.stat().st_mtime_ns
    assert model_folder(str(source), "glm4", environ) == first
    # Of the same content, wherever it lies.
    copy = Path(shutil.copytree(source, tmp_path / "elsewhere" / source.name))
    assert model_folder(str(copy), "glm4", environ) == first
    assert first.stat().st_mtime_ns == time_of, "it was not written again"
    # Whatever of it was deleted, it is written again.
    (first / "config.json").unlink()
    assert model_folder(str(source), "glm4", environ) == first
    shutil.rmtree(tmp_path / "cache")
    assert model_folder(str(source), "glm4", environ) == first
    ours, theirs = (
        glimmer.load(path, family="glm4", num_threads=1).logits([5, 6, 7])
        for path in (source, first)
    )
    np.testing.assert_array_equal(ours, theirs)
    # Another content is another model.
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "more": 1}))
    assert model_folder(str(source), "glm4", environ) != first


def test_what_a_conversion_comes_of_is_in_its_name(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files read as another family are another model, and so they are when the
    conversion has been mended."""
    source = folder(tmp_path, "chatglm2", "official")
    first = model_folder(str(source), "chatglm2", environ)
    assert model_folder(str(source), "chatglm3", environ) != first
    monkeypatch.setattr("glimmer.vllm.folder._CONVERSION", 2)
    assert model_folder(str(source), "chatglm2", environ) != first


def test_what_another_process_has_written_meanwhile_is_left_as_it_is(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vLLM may be reading it."""
    source = folder(tmp_path, "glm4", "official")
    written: list[tuple[Path, int]] = []

    def late(path: Path, target: Path, to: Any, **values: Any) -> Any:
        convert(path, target, to, family="glm4")
        written.append((target, target.stat().st_ino))
        return convert(path, target, to, **values)

    monkeypatch.setattr("glimmer.vllm.folder.convert", late)
    found = model_folder(str(source), "glm4", environ)
    assert [(found, found.stat().st_ino)] == written


def test_a_damaged_memory_of_hashes_costs_time_alone(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    source = folder(tmp_path, "glm4", "official")
    first = model_folder(str(source), "glm4", environ)
    memory = first.parent / "hashes.json"
    for damage in ("{", "[]", '{"a": 1}'):
        memory.write_text(damage)
        assert model_folder(str(source), "glm4", environ) == first


def test_one_without_a_tokenizer_is_refused(tmp_path: Path, environ: dict[str, str]) -> None:
    source = folder(tmp_path, "glm4", "native")
    for file in source.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(GlimmerError, match="no tokenizer"):
        model_folder(str(source), "glm4", environ)
