"""`glimmer finetune`: a model learns from conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glimmer.cli.options import JsonOption

if TYPE_CHECKING:
    from glimmer.training import Finetuned

_WHAT = "What is trained (these flags override CONFIG)"
_HOW = "How"


def finetune(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.yaml]", help="Keys and values: docs/finetune.md."),
    ] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option(help="A folder, a GGUF file or a release.", rich_help_panel=_WHAT),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Training file; repeatable.", rich_help_panel=_WHAT),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write.", rich_help_panel=_WHAT)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="lora, qlora, ptuning, freeze or full.", rich_help_panel=_WHAT),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="sft: the answers; dpo: which to prefer.", rich_help_panel=_WHAT),
    ] = None,
    eval_data: Annotated[
        list[Path] | None,
        typer.Option(help="File to evaluate on; repeatable.", rich_help_panel=_WHAT),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="At its peak. Default: the method's own.", rich_help_panel=_HOW),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data [3].", rich_help_panel=_HOW)
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="End after so many steps instead.", rich_help_panel=_HOW)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows per process and pass.", rich_help_panel=_HOW)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longest text in tokens.", rich_help_panel=_HOW)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of added weights, order and dropout [42].", rich_help_panel=_HOW),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto or cpu.", rich_help_panel=_HOW)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other key of CONFIG, its value as YAML: --set lora_rank=16.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in OUTPUT.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUTPUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train LoRA, P-Tuning or the model's own weights on conversations."""
    from glimmer import training
    from glimmer.cli import terminal

    quiet_imports()
    flags = {
        "model": model,
        "data": data,
        "output": output,
        "method": method,
        "objective": objective,
        "eval_data": eval_data,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "max_length": max_length,
        "seed": seed,
        "device": device,
    }
    given = {key: value for key, value in flags.items() if value not in (None, [])}
    made = training.load_config(config, parse_settings(settings or ()) | given)
    console = terminal.messages()
    result = training.finetune(made, resume=resume, overwrite=force, console=console)
    if not result.is_main:
        if result.checkpoint is not None:
            raise typer.Exit(130)
        return
    _warn(result, console)
    if as_json:
        terminal.write(json.dumps(_report(result), indent=2, ensure_ascii=False) + "\n")
    elif result.checkpoint is None:
        _print(result, made.method)
    if result.checkpoint is not None:
        raise typer.Exit(130)


def quiet_imports() -> None:
    """As they are imported, libraries tell of kernels for machines that this one is not."""
    import logging

    for library in ("bitsandbytes", "torch.utils._pytree", "torchao"):
        logging.getLogger(library).setLevel(logging.ERROR)


def parse_settings(settings: Any) -> dict[str, Any]:
    """By key, the values of ``KEY=VALUE``. Raises InvalidParameterError for another form."""
    if not settings:
        return {}
    from glimmer.errors import InvalidParameterError
    from glimmer.training.config import parse_yaml

    values = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise InvalidParameterError(f"--set looks like lora_rank=16, but it is {setting!r}.")
        values[key.strip().replace("-", "_")] = parse_yaml(value, f"--set {setting}")
    return values


def _warn(result: Finetuned, console: Any) -> None:
    from glimmer.cli import terminal

    if result.num_cut or result.num_skipped:
        console.print(
            f"warning: {result.num_cut} texts lost their end and {result.num_skipped} were left "
            "out, for they are longer than max_length."
        )
    if result.checkpoint is not None:
        console.print(
            terminal.printable(
                f"Stopped after step {result.steps}. The checkpoint {result.checkpoint} holds all "
                "of it: the same command with --resume goes on from there."
            )
        )
    if result.drift is not None and result.drift.is_too_large:
        console.print(
            f"warning: the model has drifted from what it knew: its old answers lost "
            f"{result.drift.per_token:.2f} nats per token (the threshold is "
            f"{result.drift.threshold:g}). Train for fewer epochs, with a lower learning_rate, or "
            "mix general examples into the data."
        )


def _report(result: Finetuned) -> dict[str, Any]:
    drift = result.drift
    return {
        "output": str(result.output),
        "finished": result.checkpoint is None,
        "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
        "steps": result.steps,
        "first_loss": result.losses[0] if result.losses else None,
        "last_loss": result.losses[-1] if result.losses else None,
        "eval_loss": result.eval_loss,
        "drift": None if drift is None else drift.per_token,
        "parameters": result.parameters.total,
        "trained_parameters": result.parameters.trained,
        "seconds": round(result.seconds, 1),
        "cut": result.num_cut,
        "skipped": result.num_skipped,
    }


def _print(result: Finetuned, method: str) -> None:
    from rich.table import Table

    from glimmer.cli import terminal
    from glimmer.cli.quantities import show_count

    trained, total = result.parameters.trained, result.parameters.total
    lines = [
        f"{result.output}: {method}, {show_count(trained)} of {show_count(total)} weights trained",
        f"{result.steps} steps in {result.seconds:.0f} s, loss {result.losses[0]:.4f} -> "
        f"{result.losses[-1]:.4f}",
    ]
    if result.eval_loss is not None:
        lines[-1] += f", on the held-out data {result.eval_loss:.4f}"
    terminal.write("\n".join(lines) + "\n")
    if result.drift is None:
        return
    table = Table(title="What the model says to questions it was not trained on", box=None)
    for column in ("question", "before", "after", "drift"):
        table.add_column(column, justify="right" if column == "drift" else "left")
    for row in result.drift.answers:
        texts = (terminal.printable(row[key]) for key in ("prompt", "before", "after"))
        table.add_row(*texts, f"{row['drift']:+.2f}")
    terminal.tables().print(table)
    terminal.write(
        f"Drift: {result.drift.per_token:+.2f} nats per token of the old answers (a warning is "
        f"given above {result.drift.threshold:g}).\n"
    )
