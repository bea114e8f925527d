"""`glimmer pretrain`: a network learns to fill blanks, from texts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glimmer.cli.options import JsonOption

if TYPE_CHECKING:
    from glimmer.training import Pretrained


def pretrain(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.yaml]", help="Keys and values: docs/pretraining.md."),
    ] = None,
    *,
    data: Annotated[
        list[Path] | None, typer.Option(help="Texts: a file or folder; repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The folder to write.")] = None,
    base: Annotated[str | None, typer.Option(help="A model to go on with.")] = None,
    preset: Annotated[str | None, typer.Option(help="Size: tiny, 5M or 10M.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimizer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and blanks.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other key of CONFIG, its value as YAML: --set row_length=256.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in OUTPUT.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUTPUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a network of ChatGLM-6B's kind to fill the blanks of texts."""
    from glimmer import training
    from glimmer.cli import terminal
    from glimmer.cli.finetune import parse_settings, quiet_imports
    from glimmer.training.pretraining.config import load_pretrain_config

    quiet_imports()
    flags: dict[str, Any] = {
        "data": data,
        "output": output,
        "base": base,
        "preset": preset,
        "steps": steps,
        "seed": seed,
    }
    given = {key: value for key, value in flags.items() if value not in (None, [])}
    made = load_pretrain_config(config, parse_settings(settings or ()) | given)
    console = terminal.messages()
    result = training.pretrain(made, resume=resume, overwrite=force, console=console)
    if result.is_main:
        if as_json:
            terminal.write(json.dumps(_to_json(result), indent=2, ensure_ascii=False) + "\n")
        elif result.model is not None:
            _print(result)
        if result.checkpoint is not None:
            console.print(
                terminal.printable(
                    f"Stopped after step {result.steps}. The checkpoint {result.checkpoint} holds "
                    "all of it: the same command with --resume goes on from there."
                )
            )
    if result.checkpoint is not None:
        raise typer.Exit(130)


def _to_json(result: Pretrained) -> dict[str, Any]:
    return {
        "model": None if result.model is None else str(result.model),
        "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
        "steps": result.steps,
        "parameters": result.num_parameters,
        "tokens": result.num_tokens,
        "seconds": round(result.seconds, 1),
        "first_loss": result.losses[0]["loss"] if result.losses else None,
        "last_loss": result.losses[-1]["loss"] if result.losses else None,
        "scores": {k: asdict(v) | {"perplexity": v.perplexity} for k, v in result.scores.items()},
        "unigram": {k: asdict(v) | {"perplexity": v.perplexity} for k, v in result.unigram.items()},
    }


def _print(result: Pretrained) -> None:
    from rich.table import Table

    from glimmer.cli import terminal
    from glimmer.cli.quantities import show_count

    terminal.write(
        f"{result.model}: {show_count(result.num_parameters)} weights, {result.steps} steps in "
        f"{result.seconds:.0f} s on {show_count(result.num_tokens)} tokens of text\n"
    )
    if not result.scores:
        return
    table = Table(title="Blanks in texts that were held out", box=None)
    for name in ("blank", "tokens", "perplexity", "accuracy", "unigram perplexity", "accuracy"):
        table.add_column(name, justify="left" if name == "blank" else "right")
    blanks = {"mask": "[MASK]", "smask": "[sMASK]", "gmask": "[gMASK]"}
    for kind, score in result.scores.items():
        guess = result.unigram[kind]
        table.add_row(
            blanks[kind],
            str(score.num_tokens),
            f"{score.perplexity:.1f}",
            f"{score.accuracy:.1%}",
            f"{guess.perplexity:.1f}",
            f"{guess.accuracy:.1%}",
        )
    terminal.tables().print(table)
