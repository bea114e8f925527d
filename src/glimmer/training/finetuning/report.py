"""What a run leaves to read: training.json and the picture of its losses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from glimmer.checkpoints.atomic import new_file

REPORT = "training.json"
PICTURE = "loss.png"
_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")
_METRICS = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")


def versions() -> dict[str, str]:
    """Of Glimmer and of what it trains with."""
    found = {"glimmer-lm": metadata.version("glimmer-lm")}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def losses(log_history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per step: loss, learning rate, gradient's length, and what DPO measures."""
    keys = ("step", "epoch", "loss", "learning_rate", "grad_norm", *_METRICS)
    return [{key: log[key] for key in keys if key in log} for log in log_history if "loss" in log]


def evaluations(log_history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per evaluation."""
    keys = ("step", "epoch", "eval_loss", *(f"eval_{name}" for name in _METRICS))
    return [
        {key: log[key] for key in keys if key in log} for log in log_history if "eval_loss" in log
    ]


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """training.json; raises OutputError where it cannot be written."""
    with new_file(folder / REPORT, overwrite=True) as stream:
        stream.write(json.dumps(report, ensure_ascii=False, indent=1).encode() + b"\n")


def draw_losses(
    folder: Path, steps: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]
) -> None:
    """loss.png: the loss of each step, and of each evaluation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], label="training")
    if measured:
        axes.plot(
            [m["step"] for m in measured],
            [m["eval_loss"] for m in measured],
            marker="o",
            label="evaluation",
        )
        axes.legend()
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)" if "rewards/margins" not in steps[-1] else "loss")
    axes.grid(alpha=0.3)
    with new_file(folder / PICTURE, overwrite=True) as stream:
        canvas.print_png(stream)
