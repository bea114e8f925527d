"""What a machine cannot do is refused before anything is loaded."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from glimmer.errors import (
    MissingExtraError,
    ModelNotFoundError,
    OutOfMemoryError,
    OutputError,
    UsageError,
)
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


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows beyond 4 KB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_whoever_wrote(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(10_000)}
    for write, said in (
        (lambda: save_file(tensors, tmp_path / "a.safetensors"), "File too large"),
        (lambda: torch.save(tensors, tmp_path / "a.pt"), "the disk is full, or refuses"),
        (lambda: (tmp_path / "a.json").write_bytes(bytes(10_000)), "File too large"),
    ):
        with (
            pytest.raises(OutputError, match=rf"out cannot be written: {said}\. .* --resume"),
            translated_errors(Path("out")),
            full_disk(),
        ):
            write()
    with pytest.raises(FileNotFoundError), translated_errors():
        (tmp_path / "none").read_bytes()


def test_a_result_that_found_no_room_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glimmer.training import finetune
    from glimmer.training.finetuning import run

    model = tuning.tiny_model(tmp_path / "m")
    config = tuning.settings(tmp_path, model, tuning.answers(tmp_path / "a.jsonl"), max_steps=2)
    with monkeypatch.context() as patch:
        write = run.write_result

        def without_room(*args: Any) -> None:
            with full_disk():
                write(*args)

        patch.setattr(run, "write_result", without_room)
        with pytest.raises(OutputError, match="goes on from the last checkpoint"):
            finetune(config)
    assert [path.name for path in config.output.iterdir()] == ["checkpoints"]
    assert finetune(config, resume=True).steps == 2
    assert (config.output / "adapter_model.safetensors").is_file()
