"""`glimmer verify`: a parity report of a model against itself in float32, or against another."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from glimmer.cli.options import JsonOption, ModelArgument

if TYPE_CHECKING:
    from rich.table import Table

    from glimmer.verification import Comparison

WeightsName = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]


def verify(
    model: ModelArgument,
    *,
    weights: Annotated[
        WeightsName, typer.Option(help="Convert the weights first; auto takes them as they are.")
    ] = "auto",
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another model. Default: MODEL itself.")
    ] = None,
    reference: Annotated[
        WeightsName, typer.Option(help="What the other's weights are converted to.")
    ] = "float32",
    text: Annotated[
        Path | None, typer.Option(help="A text file to read. Default: a page of our own.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="At most so many tokens of it.")] = 2048,
    family: Annotated[
        str | None, typer.Option(help="Name the family instead of recognising it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how far a model is from float32: layers, logits, greedy tokens, perplexity, KL."""
    from glimmer.cli import terminal
    from glimmer.errors import InvalidParameterError
    from glimmer.verification import compare

    try:
        content = None if text is None else text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidParameterError(f"{text} is not UTF-8 text: {error}.") from error
    with terminal.messages().status("Comparing ..."):
        report = compare(
            model,
            weights=weights,
            against=against,
            reference_weights=reference,
            text=content,
            max_tokens=tokens,
            family=family,
        )
    if as_json:
        terminal.write(json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n")
        return
    terminal.tables().print(_table(report))


def _table(report: Comparison) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    source = "drawn tokens" if report.on_random_ids else "tokens of text"
    table.add_row("model", report.model)
    table.add_row("reference", report.reference)
    table.add_row("read", f"{report.num_tokens} {source}")
    if report.tokenizer is not None:
        good = report.tokenizer.num_texts - len(report.tokenizer.failed)
        table.add_row("tokenizer", f"{good} of {report.tokenizer.num_texts} lines come back")
    table.add_row(
        "logits",
        f"differ by {report.logit_error_mean:.3g} on average, {report.logit_error_max:.3g} at most",
    )
    table.add_row("greedy", f"{report.greedy_agreement:.1%} of tokens are the same")
    table.add_row("KL", f"{report.kl_divergence:.3g} nats")
    change = report.perplexity / report.reference_perplexity - 1
    table.add_row(
        "perplexity",
        f"{report.perplexity:.4g} (reference {report.reference_perplexity:.4g}, {change:+.2%})",
    )
    for layer, error in enumerate(report.layer_errors):
        table.add_row("embedding" if layer == 0 else f"layer {layer - 1}", f"{error:.2e}")
    return table
