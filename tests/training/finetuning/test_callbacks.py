"""The guard on the loss says what went wrong, and where."""

from __future__ import annotations

import io
import os
import signal
from types import SimpleNamespace

import pytest
from rich.console import Console

from glimmer.errors import TrainingError
from glimmer.training.finetuning import callbacks
from glimmer.training.finetuning.callbacks import LossGuard, ProgressBar, StopOnSignal


def log(guard: LossGuard, step: int, loss: float, norm: float) -> None:
    logs = {"loss": loss, "grad_norm": norm, "learning_rate": 0.25}
    guard.on_log(None, SimpleNamespace(global_step=step), None, logs=logs)


@pytest.mark.parametrize(
    ("loss", "norm", "said"),
    [
        (
            float("nan"),
            1.0,
            r"Step 8: the loss is nan \(learning rate 0.25, gradient of length 1\)",
        ),
        (float("inf"), 1.0, "Step 8: the loss is inf"),
        (1.0, float("nan"), "Step 8: the gradient's length is nan"),
        (0.0, 1.0, "Step 8: the loss is exactly 0"),
    ],
)
def test_what_ends_a_run(loss: float, norm: float, said: str) -> None:
    guard = LossGuard(scaled=False)
    log(guard, 7, 2.0, 3.5)
    with pytest.raises(TrainingError, match=said) as caught:
        log(guard, 8, loss, norm)
    assert loss == 0.0 or "the loss 2 and a gradient of length 3.5" in str(caught.value)


def test_a_scaled_gradient_may_overflow() -> None:
    log(LossGuard(scaled=True), 1, 1.0, float("inf"))


def test_other_logs_are_left_alone() -> None:
    LossGuard(scaled=False).on_log(None, None, None, logs={"eval_loss": 0.0})


def test_a_second_ctrl_c_ends_at_once_but_not_the_same_one_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])
    stop = StopOnSignal()
    before = signal.getsignal(signal.SIGINT)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        clock[0] += 0.5  # a launcher hands on what the terminal sent to all of them
        os.kill(os.getpid(), signal.SIGTERM)
        clock[0] += 1.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before

    def ended(step: int) -> tuple[bool, bool]:
        """Whether the run is stopped behind this step of ten, and whether it is saved."""
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        stop.stopped = False
        stop.on_step_end(
            SimpleNamespace(world_size=1), SimpleNamespace(global_step=step, max_steps=10), control
        )
        assert stop.stopped == control.should_training_stop
        return control.should_training_stop, control.should_save

    assert ended(9) == (True, True)
    assert ended(10) == (False, False)  # which has reached its end


def test_the_bar_is_for_terminals_alone() -> None:
    def shown(is_terminal: bool) -> str:
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, width=100)
        state = SimpleNamespace(is_world_process_zero=True, max_steps=8, global_step=3)
        with ProgressBar(console) as bar:
            bar.on_train_begin(None, state, None)
            bar.on_log(None, state, None, logs={"loss": 1.25, "learning_rate": 0.5})
        return file.getvalue()

    drawn = shown(True)
    assert "3/8" in drawn
    assert "loss 1.2500  lr 5.00e-01" in drawn
    assert shown(False) == ""
