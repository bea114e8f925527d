"""What a machine cannot do is refused before anything is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from glimmer.errors import MissingExtraError, ModelNotFoundError, OutOfMemoryError, UsageError
from glimmer.training.finetuning.devices import (
    check_machine,
    on_processor,
    translated_errors,
)
from tests.support import tuning


def settings(tmp_path: Path, **given: Any) -> Any:
    return tuning.settings(tmp_path, Path("m"), Path("d"), **given)


def test_a_processor_is_what_is_asked_for(tmp_path: Path) -> None:
    assert on_processor(settings(tmp_path))


def test_deepspeed_is_refused_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ds.json"
    with pytest.raises(ModelNotFoundError, match="no DeepSpeed config"):
        check_machine(settings(tmp_path, deepspeed=file))
    file.write_text('{"zero_optimization": {"stage": 2}}')
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingExtraError, match="pip install deepspeed"):
        check_machine(settings(tmp_path, deepspeed=file))


def test_fp16_is_for_gpus(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="On a processor use bf16"):
        check_machine(settings(tmp_path, mixed_precision="fp16"))
    check_machine(settings(tmp_path, mixed_precision="bf16"))


def test_shards_need_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UsageError, match="this is the only one"):
        check_machine(settings(tmp_path, fsdp=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_machine(settings(tmp_path, fsdp=True))


def test_a_lack_of_memory_is_told_with_what_helps() -> None:
    with pytest.raises(OutOfMemoryError, match=r"machine has.*batch_size"), translated_errors():
        torch.empty(1 << 60)
    with pytest.raises(OutOfMemoryError, match="The GPU has not"), translated_errors():
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="something else"), translated_errors():
        raise RuntimeError("something else")
