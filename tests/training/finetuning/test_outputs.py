"""The folder that a run writes: when it is free, when it is replaced, and what is never lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from glimmer.errors import InvalidParameterError, OutputError
from glimmer.training import finetune
from glimmer.training.finetuning.outputs import check_output, clear_output
from tests.support import tuning


def a_run(folder: Path) -> Path:
    """What a run of LoRA leaves."""
    for name in ("training.json", "adapter_model.safetensors", "checkpoints/checkpoint-4/x.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_folders_without_a_file_are_free(tmp_path: Path) -> None:
    check_output(tmp_path / "none", (), overwrite=False)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    check_output(tmp_path / "empty", (), overwrite=False)


def test_what_is_no_run_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidParameterError, match="exists already"):
        check_output(tmp_path, (), overwrite=False)
    for output in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InvalidParameterError, match="is not the folder of a run"):
            check_output(output, (), overwrite=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "run.json").write_text("{}")  # it ended before its report
    check_output(tmp_path, (), overwrite=True)


def test_a_run_does_not_replace_what_it_reads(tmp_path: Path) -> None:
    output = a_run(tmp_path / "out")
    check_output(output, ("demo", tmp_path / "data.jsonl"), overwrite=True)
    for inside in (output, output / "train.jsonl", output / "checkpoints" / ".." / "a.jsonl"):
        with pytest.raises(InvalidParameterError, match="which this run would replace"):
            check_output(output, (inside,), overwrite=True)


def test_what_an_earlier_run_left_is_cleared(tmp_path: Path) -> None:
    output = a_run(tmp_path / "out")
    (output / "dangling").symlink_to("nowhere")
    clear_output(output)
    assert [path.name for path in output.rglob("*")] == ["checkpoints"]


def test_what_cannot_be_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old checkpoints that stay would be resumed from."""

    def refused(path: Path, *_args: Any, ignore_errors: bool = False, **_kwargs: Any) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(path))

    output = a_run(tmp_path / "out")
    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.raises(OutputError, match="checkpoints cannot be replaced: Permission denied"):
        clear_output(output)


@pytest.mark.usefixtures("quiet")
def test_a_run_that_cannot_begin_leaves_all_as_it_was(tmp_path: Path) -> None:
    model = tuning.tiny_model(tmp_path / "m")
    data = tuning.answers(tmp_path / "a.jsonl")
    wrong = tuning.settings(tmp_path, model, data, lora_targets=["query"], max_steps=1)
    right = wrong.model_copy(update={"lora_targets": ["q_proj"]})
    with pytest.raises(InvalidParameterError, match="names 'query'"):
        finetune(wrong)
    finetune(right)  # the name is not taken
    before = (right.output / "adapter_model.safetensors").read_bytes()
    with pytest.raises(InvalidParameterError, match="names 'query'"):
        finetune(wrong, overwrite=True)
    assert (right.output / "adapter_model.safetensors").read_bytes() == before
    with pytest.raises(InvalidParameterError, match="give one of them"):
        finetune(right, resume=True, overwrite=True)
