"""`glimmer show`: what a model's file holds and what it takes to run it. Reads no weights."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from glimmer.cli.options import JsonOption, ModelArgument


def show(
    model: ModelArgument,
    *,
    ctx: Annotated[
        int | None,
        typer.Option(min=1, help="Context in tokens to tell memory for. Default: the longest."),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    family: Annotated[
        str | None, typer.Option(help="Name the family instead of recognising it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's network, tokenizer, tensors and memory, without loading it."""
    import glimmer
    from glimmer import native
    from glimmer.cli import model_report, terminal

    summary = glimmer.inspect(model, family=family)
    memory = model_report.plan_memory(summary, ctx, native.available_memory())
    if as_json:
        report = model_report.to_json(summary, memory, tensors=tensors)
        terminal.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        return
    console = terminal.tables()
    for table in model_report.to_tables(summary, memory, tensors=tensors):
        console.print(table, end="\n\n")
