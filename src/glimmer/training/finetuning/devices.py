"""What a process trains on, and whether this machine can do what a config asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from glimmer.errors import MissingExtraError, ModelNotFoundError, OutOfMemoryError, UsageError
from glimmer.training.config import FinetuneConfig


def on_processor(config: FinetuneConfig) -> bool:
    """Whether it is the processor: because it was asked for, or there is nothing else."""
    return config.device == "cpu" or not torch.accelerator.is_available()


def local_gpu(config: FinetuneConfig) -> int | None:
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
    if config.fsdp and num_processes() == 1:
        raise UsageError(
            "fsdp shards weights over processes, but this is the only one. Start several: "
            "torchrun --nproc-per-node 2 -m glimmer finetune ..."
        )


@contextmanager
def translated_errors() -> Iterator[None]:
    """PyTorch's lack of memory as ours, with what helps against it."""
    try:
        yield
    except RuntimeError as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(
            f"The {'GPU' if on_gpu else 'machine'} has not enough memory for this run. Lower "
            "batch_size or max_length, set gradient_checkpointing, hold weights in fewer bits "
            "(dtype: bfloat16, or method: qlora), or shard them (fsdp). "
            "`glimmer plan MODEL --finetune METHOD` tells what a run takes."
        ) from error
