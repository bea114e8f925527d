"""`glimmer adapter verify`: whether an adapter fits a model, and whether it changes anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glimmer.cli.options import JsonOption

if TYPE_CHECKING:
    from glimmer.adapters import Adapter

adapter = typer.Typer(help="Look at adapters (LoRA, P-Tuning).", no_args_is_help=True)


@adapter.callback()
def _group() -> None:
    pass


@adapter.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="The folder that the training wrote.")
    ],
    *,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="The model that it shall be used with.")
    ],
    family: Annotated[
        str | None, typer.Option(help="Name the family instead of recognising it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what an adapter is, and whether it can be used. No weight of the model is read.

    Ends with 1 if it does not fit the model, holds NaN or infinity, or changes nothing. One that
    fits may still have to be merged, as those for routed experts: it is told so.
    """
    from glimmer.adapter_pool import read_adapters
    from glimmer.catalogue import find_file
    from glimmer.cli import terminal

    (found,) = read_adapters(model, [folder], family=family)
    report = _report(found, str(find_file(model)[0]))
    if as_json:
        terminal.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        _print(report)
    if report["verdict"] != "ok":
        raise typer.Exit(1)


def _report(found: Adapter, model: str) -> dict[str, Any]:
    """``verdict`` is "ok", "not finite" or "changes nothing"."""
    verdict = "ok" if found.changes_anything else "changes nothing"
    if found.not_finite is not None:
        verdict = "not finite"
    weights: dict[str, int] = {}
    for name in found.low_rank:
        pattern = ".".join(part for part in name.split(".") if not part.isdigit())
        weights[pattern.removeprefix("layers.")] = (
            weights.get(pattern.removeprefix("layers."), 0) + 1
        )
    return {
        "path": str(found.path),
        "kind": found.kind,
        "family": found.family,
        "model": model,
        "trained_on": found.base,
        "weights": weights,
        "ranks": found.ranks,
        "scales": sorted({part.scale for part in found.low_rank.values()}),
        "prefix_length": found.prefix_length,
        "num_parameters": found.num_parameters,
        "not_finite": found.not_finite,
        "only_merges": found.only_merges,
        "verdict": verdict,
    }


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    from glimmer.cli import terminal
    from glimmer.cli.quantities import show_count

    table = Table.grid(padding=(0, 2))

    def row(name: str, text: str) -> None:
        table.add_row(name, terminal.printable(text))

    is_lora = report["kind"] == "lora"
    row("adapter", "LoRA" if is_lora else f"a prefix of {report['prefix_length']} tokens")
    row("fits", f"{report['model']} ({report['family']})")
    row("trained on", report["trained_on"] or "it does not say")
    if is_lora:
        row("rank", ", ".join(map(str, report["ranks"])))
        row("scale", ", ".join(f"{scale:g}" for scale in report["scales"]))
        row("weights", ", ".join(f"{n} x {name}" for name, n in report["weights"].items()))
    row("size", f"{show_count(report['num_parameters'])} parameters")
    use = "once it is merged (glimmer merge): routed experts take no adapter while they run"
    row(
        "verdict",
        {
            "ok": f"it changes answers{', ' + use if report['only_merges'] else ''}",
            "changes nothing": "it changes nothing: all of its B, or A, are zero",
            "not finite": f"{report['not_finite']} holds NaN or infinity: it cannot be used",
        }[report["verdict"]],
    )
    terminal.tables().print(table)
