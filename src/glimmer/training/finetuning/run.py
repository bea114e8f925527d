"""One fine-tuning run, from its config to its files."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from glimmer.errors import InvalidParameterError
from glimmer.training.config import FinetuneConfig
from glimmer.training.finetuning import report
from glimmer.training.finetuning.callbacks import LossGuard, OwnIntervals, ProgressBar, StopOnSignal
from glimmer.training.finetuning.dataset import TrainingRows, read_rows
from glimmer.training.finetuning.devices import check_machine, translated_errors
from glimmer.training.finetuning.forgetting import Drift, ForgettingGuard
from glimmer.training.finetuning.methods import ParameterCount, count_parameters
from glimmer.training.finetuning.outputs import (
    CHECKPOINTS,
    TENSORBOARD,
    base_name,
    check_output,
    check_result,
    clear_output,
    write_result,
)
from glimmer.training.finetuning.quiet import quiet_libraries
from glimmer.training.finetuning.resumption import (
    check_resumed,
    last_checkpoint,
    remember_run,
    require_checkpoint,
)
from glimmer.training.finetuning.trainers import make_trainer
from glimmer.training.text import TextSide, open_text

_GUARD_FILE = "answers_before.json"


@dataclass(frozen=True, slots=True)
class Finetuned:
    """How a run ended."""

    output: Path
    steps: int
    losses: tuple[float, ...]
    """One per step; in nats per trained token (sft)."""
    eval_loss: float | None
    drift: Drift | None
    parameters: ParameterCount
    seconds: float
    """Of training, evaluation and guard, without loading."""
    checkpoint: Path | None
    """Where a stopped run goes on from (``resume``); None for one that reached its end."""
    num_cut: int
    """Rows of the training files that lost their end, for they were longer than ``max_length``."""
    num_skipped: int
    """Rows that were left out for it."""
    is_main: bool
    """Whether this process is the one that writes and speaks."""


def finetune(
    config: FinetuneConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Finetuned:
    """Train as ``config`` says, and write the result to ``config.output``.

    Under `accelerate launch` or `torchrun` each process calls it. A run that is stopped by Ctrl-C
    or SIGTERM saves a checkpoint, from which ``resume`` goes on with the very losses that the run
    would have had.

    Raises:
        UsageError: the config, the data or the model do not go together; the message says how.
        TrainingDataError: the data is at fault; the message names the lines.
        TrainingError: the loss is no number, or 0.
        OutputError: a file could not be written.
        OutOfMemoryError: weights, gradients or activations do not fit.
    """
    check_machine(config)
    checkpoint = _check_output(config, resume=resume, overwrite=overwrite)
    text = open_text(config.model, config.family)
    check_result(config, text)
    data, held_out = _read(config, text)
    if checkpoint is not None:
        check_resumed(config, data)

    console = console or Console(stderr=True)
    with quiet_libraries(), translated_errors(config.output):
        return _train(config, text, data, held_out, checkpoint, console)


def _check_output(config: FinetuneConfig, *, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, if any. Deletes nothing."""
    if resume and overwrite:
        raise InvalidParameterError(
            f"--resume goes on with the run in {config.output}, and --force replaces it: give one "
            "of them."
        )
    if resume:
        return require_checkpoint(config.output)
    if int(os.environ.get("RANK", "0")) == 0:
        inputs: list[str | Path] = [config.model, *config.data, *config.eval_data]
        check_output(config.output, inputs, overwrite=overwrite)
    return None


def _train(
    config: FinetuneConfig,
    text: TextSide,
    data: TrainingRows,
    held_out: TrainingRows | None,
    checkpoint: Path | None,
    console: Console,
) -> Finetuned:
    with _status(console, f"Loading {config.model} ..."):
        trainer = make_trainer(config, text, data, held_out)
    parameters = count_parameters(trainer.model)
    guard, stop = _guard(config, text, console), StopOnSignal()
    bar = ProgressBar(console)
    scaled = config.mixed_precision == "fp16"
    for callback in (LossGuard(scaled=scaled), OwnIntervals(), guard, stop, bar):
        if callback is not None:
            trainer.add_callback(callback)
    if config.tensorboard:
        trainer.add_callback(_tensorboard(config.output))
    if trainer.is_world_process_zero():
        if checkpoint is None:
            clear_output(config.output)
        remember_run(config, data)

    began = time.monotonic()
    with stop.listening(), bar:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    drift = None
    if not stop.stopped:
        drift = None if guard is None else guard.compare(trainer.model)
        write_result(config, trainer, text, base_name(config.model))
    seconds = time.monotonic() - began

    history = trainer.state.log_history
    steps, measured = report.losses(history), report.evaluations(history)
    if trainer.is_world_process_zero():
        report.draw_losses(config.output, steps, measured)
        report.write_report(
            config.output,
            {
                "finished": not stop.stopped,
                "model": {"path": str(text.path), "family": text.family.name},
                "config": config.model_dump(mode="json"),
                "versions": report.versions(),
                "data": _describe(data),
                "eval_data": None if held_out is None else _describe(held_out),
                "parameters": parameters.total,
                "trained_parameters": parameters.trained,
                "processes": trainer.args.world_size,
                "seconds": round(seconds, 1),
                "losses": steps,
                "evaluations": measured,
                "forgetting": None if drift is None else asdict(drift),
            },
        )
    return Finetuned(
        output=config.output,
        steps=trainer.state.global_step,
        losses=tuple(step["loss"] for step in steps),
        eval_loss=measured[-1]["eval_loss"] if measured else None,
        drift=drift,
        parameters=parameters,
        seconds=seconds,
        checkpoint=last_checkpoint(config.output) if stop.stopped else None,
        num_cut=data.num_cut,
        num_skipped=data.num_skipped,
        is_main=trainer.is_world_process_zero(),
    )


def _read(config: FinetuneConfig, text: TextSide) -> tuple[TrainingRows, TrainingRows | None]:
    """What is trained on, and what is evaluated on."""
    data = read_rows(config.data, config, text)
    if config.eval_data:
        return data, read_rows(config.eval_data, config, text)
    return data.split(config.eval_share, config.seed) if config.eval_share else (data, None)


def _status(console: Console, doing: str) -> AbstractContextManager[object]:
    """Shown on a terminal while it lasts, by the first process."""
    first = int(os.environ.get("RANK", "0")) == 0
    return console.status(doing) if first and console.is_terminal else nullcontext()


def _guard(config: FinetuneConfig, text: TextSide, console: Console) -> ForgettingGuard | None:
    # DeepSpeed's third stage leaves no weights where a question could be asked.
    if not config.guard or config.deepspeed is not None:
        return None
    return ForgettingGuard(
        text,
        config.output / CHECKPOINTS / _GUARD_FILE,
        prompts=config.guard_prompts,
        max_tokens=config.guard_max_tokens,
        threshold=config.guard_threshold,
        asking=lambda: _status(console, "Asking the forgetting guard's questions ..."),
    )


def _tensorboard(output: Path) -> Any:
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(output / TENSORBOARD)
    return callback


def _describe(data: TrainingRows) -> dict[str, Any]:
    return {
        "sha256": data.sha256,
        "examples": len(data.examples),
        "rows": len(data.rows),
        "tokens": data.num_tokens,
        "trained_tokens": data.num_trained_tokens,
        "cut": data.num_cut,
        "skipped": data.num_skipped,
    }
