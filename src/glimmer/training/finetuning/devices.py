"""What a process trains on, and whether this machine can do what a config asks for."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError

from glimmer.errors import (
    MissingExtraError,
    ModelNotFoundError,
    OutOfMemoryError,
    OutputError,
    UsageError,
)
from glimmer.training.config import FinetuneConfig

_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM,
}  # fmt: skip
_ADVICE = (
    "Lower batch_size or max_length, set gradient_checkpointing, hold weights in fewer bits "
    "(dtype: bfloat16, or method: qlora), or shard them (fsdp). "
    "`glimmer plan MODEL --finetune METHOD` tells what a run takes."
)


class Computing(Protocol):
    """What a run computes on and in, of either kind of config."""

    @property
    def device(self) -> str: ...
    @property
    def mixed_precision(self) -> str: ...


def on_processor(config: Computing) -> bool:
    """Whether it is the processor: because it was asked for, or there is nothing else."""
    return config.device == "cpu" or not torch.accelerator.is_available()


def local_gpu(config: Computing) -> int | None:
    """This process's CUDA device; None where it has none."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return None
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_processes() -> int:
    """Of this run, as its launcher says (torchrun, accelerate); 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_machine(config: FinetuneConfig) -> None:
    """Raise UsageError where what is asked for is not installed, or not to be had of this GPU."""
    if config.deepspeed is not None:
        if not config.deepspeed.is_file():
            raise ModelNotFoundError(f"There is no DeepSpeed config {config.deepspeed}.")
        try:
            import deepspeed  # type: ignore[import-not-found]  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                "deepspeed is set, but DeepSpeed is not installed, and it is no part of the extra "
                '"train": pip install deepspeed, or use fsdp instead.'
            ) from error
    check_precision(config)
    if config.fsdp and num_processes() == 1:
        raise UsageError(
            "fsdp shards weights over processes, but this is the only one. Start several: "
            "torchrun --nproc-per-node 2 -m glimmer finetune ..."
        )


def check_precision(config: Computing) -> None:
    """Raise UsageError where this machine does not compute in what is asked for."""
    if config.mixed_precision == "fp16" and on_processor(config):
        raise UsageError(
            "mixed_precision is fp16, which is for GPUs. On a processor use bf16, or none."
        )
    on_cuda = local_gpu(config) is not None
    if config.mixed_precision == "bf16" and on_cuda and not torch.cuda.is_bf16_supported():
        raise UsageError(
            "mixed_precision is bf16, but this GPU does not compute in it (Ampere and later do). "
            "Use fp16."
        )


@contextmanager
def translated_errors(output: Path | None = None, advice: str = _ADVICE) -> Iterator[None]:
    """PyTorch's and safetensors' errors as ours: no memory (``advice`` is what helps then), no room
    for what is written to ``output``.

    Raises:
        OutOfMemoryError: weights, gradients or activations do not fit.
        OutputError: a file could not be written.
    """
    try:
        yield
    except (RuntimeError, OSError, SafetensorError) as error:
        if (reason := _why_not_written(error)) is not None:
            raise OutputError(
                f"{'A file' if output is None else output} cannot be written: {reason}. What was "
                "written whole before is kept: mend the cause, then the same command with --resume "
                "goes on from the last checkpoint."
            ) from error
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(
            f"The {'GPU' if on_gpu else 'machine'} has not enough memory for this run. {advice}"
        ) from error


def _why_not_written(error: Exception) -> str | None:
    """What a disk said; None for an error of another kind."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _DISK_ERRORS else None
    if isinstance(error, SafetensorError):
        found = re.search(r"I/O error: (.*?)(?: \(os error \d+\))?$", str(error))
        return found[1] if found else None
    # torch.save tells of a write that failed in no other way.
    return "the disk is full, or refuses" if "inline_container.cc" in str(error) else None
