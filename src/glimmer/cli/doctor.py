"""`glimmer doctor`: what is wrong, and how to mend it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from glimmer.cli.options import JsonOption

_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "error": "red"}


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A folder, file or release. None: this machine."),
    ] = None,
    *,
    family: Annotated[
        str | None, typer.Option(help="Name the family instead of recognising it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what is wrong with a model or with this machine. Ends with 1 if something is."""
    from glimmer.catalogue import find_file
    from glimmer.cli import terminal
    from glimmer.doctor import examine_machine, examine_model

    findings = examine_machine() if model is None else examine_model(find_file(model)[0], family)
    if as_json:
        report = [asdict(finding) for finding in findings]
        terminal.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for finding in findings:
            table.add_row(
                Text(finding.severity, style=_STYLES[finding.severity]),
                terminal.printable(finding.subject),
                terminal.printable(finding.text),
            )
        terminal.tables().print(table)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)
