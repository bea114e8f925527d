"""What happens beside the steps of a run: a bar, a guard on the loss, a stop when asked."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback

from glimmer.errors import TrainingError

_SECOND_SIGNAL_S = 1.0
"""Launchers hand a terminal's Ctrl-C on to processes that have had it: twice at once is once."""


class ProgressBar(TrainerCallback):
    """Steps done, loss and learning rate on standard error; nothing where that is no terminal."""

    def __init__(self, console: Any) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("Training", total=None, values="")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._progress.start()
            self._progress.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            values = f"loss {logs['loss']:.4f}  lr {logs.get('learning_rate', 0.0):.2e}"
            self._progress.update(self._task, values=values)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class LossGuard(TrainerCallback):
    """Ends a run whose loss is no number, or 0, before it is saved. Every process sees the same.

    Raises:
        TrainingError: it names the step, its learning rate and the length of its gradient.
    """

    def __init__(self, *, scaled: bool) -> None:
        self._scaled = scaled
        """float16's loss is scaled: a gradient that overflows is left out, and that is in order."""
        self._last_good: Mapping[str, float] | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss, norm = logs["loss"], logs.get("grad_norm", 0.0)
        if not math.isfinite(loss):
            raise TrainingError(self._message(f"the loss is {loss}", state.global_step, logs))
        if not math.isfinite(norm) and not self._scaled:
            raise TrainingError(
                self._message(f"the gradient's length is {norm}", state.global_step, logs)
            )
        if loss == 0.0:
            raise TrainingError(
                f"Step {state.global_step}: the loss is exactly 0, so there is nothing to learn: "
                "either no token of the batch is trained on (`glimmer data check` shows the "
                "mask), or the model knows the data by heart (train for fewer epochs)."
            )
        self._last_good = dict(logs, step=state.global_step)

    def _message(self, what: str, step: int, logs: Mapping[str, float]) -> str:
        before = ""
        if self._last_good is not None:
            before = (
                f" The step before had the loss {self._last_good['loss']:.4g} and a gradient of "
                f"length {self._last_good.get('grad_norm', math.nan):.4g}."
            )
        return (
            f"Step {step}: {what} (learning rate {logs.get('learning_rate', math.nan):.3g}, "
            f"gradient of length {logs.get('grad_norm', math.nan):.4g}).{before} Nothing was "
            "written after it. Lower learning_rate or max_grad_norm, warm up for longer, or "
            "compute in more bits (mixed_precision: no or bf16, dtype: float32)."
        )


class OwnIntervals(TrainerCallback):
    """A resumed run saves, measures and logs as often as it is told, not as the run before was."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)  # a checkpoint's state brings its own along


class StopOnSignal(TrainerCallback):
    """Ctrl-C and SIGTERM end the run after the step that is under way, with a checkpoint.

    Processes agree on it, for a process that waits for another's gradient waits for ever. A second
    Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked_at: float | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are heeded inside the block, where this is the main thread."""
        names = (signal.SIGINT, signal.SIGTERM)
        try:
            before = [signal.signal(name, self._ask) for name in names]
        except ValueError:  # not the main thread: its owner decides
            yield
            return
        try:
            yield
        finally:
            for name, handler in zip(names, before, strict=True):
                signal.signal(name, handler)

    def _ask(self, _number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._asked_at is not None and now - self._asked_at > _SECOND_SIGNAL_S:
            raise KeyboardInterrupt
        self._asked_at = now if self._asked_at is None else self._asked_at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        asked = self._asked_at is not None
        if args.world_size > 1:
            flag = torch.tensor(int(asked), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
