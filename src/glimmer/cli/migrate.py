"""`glimmer migrate check`: what to change before a program moves to the other side."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from glimmer.cli.keys import DatabaseOption
from glimmer.cli.options import JsonOption

if TYPE_CHECKING:
    from glimmer.migration import Finding, Scan

migrate = typer.Typer(
    help="Move programs between this machine and the hosted platform.", no_args_is_help=True
)
_STYLES = {"error": "red", "warning": "yellow", "note": "dim"}


@migrate.callback()
def _group() -> None:
    pass


@migrate.command()
def check(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Recorded requests (.jsonl), code, or folders."),
    ] = None,
    *,
    to: Annotated[
        Literal["hosted", "local"], typer.Option(help="The side that the program moves to.")
    ] = "hosted",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model that it will ask there.")
    ] = None,
    ledger: Annotated[
        bool, typer.Option("--ledger", help="Look at what this server was asked, too.")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what differs on the other side, and what to change. Ends with 1 if something does.

    Nothing is sent, and no code is run: files are read as text.
    """
    from glimmer.cli import terminal
    from glimmer.errors import UsageError
    from glimmer.migration import Target, scan_paths

    if not paths and not ledger:
        raise UsageError("Name files or folders to check, or --ledger.")
    target = Target(to, model)
    scan = scan_paths(paths or [], target)
    if ledger:
        from glimmer.migration.ledger import check_ledger

        scan.findings += check_ledger(database, target)
    severities = Counter(finding.severity for finding in scan.findings)
    if as_json:
        report = {
            "to": to,
            "model": model,
            "num_files": scan.num_files,
            "num_requests": scan.num_requests,
            "findings": [asdict(finding) for finding in scan.findings],
        }
        terminal.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        _print(scan)
    if severities["error"] or severities["warning"]:
        raise typer.Exit(1)


def _print(scan: Scan) -> None:
    from rich.text import Text

    from glimmer.cli import terminal

    console = terminal.tables()
    for where in dict.fromkeys(finding.where for finding in scan.findings):
        console.print(Text(terminal.printable(where), style="bold"))
        for finding in scan.findings:
            if finding.where == where:
                head = Text(f"{finding.line or '':>6}  ")
                head.append(f"{finding.severity:7}  ", style=_STYLES[finding.severity])
                console.print(head.append(terminal.printable(_headline(finding))))
                advice = terminal.printable(f"{finding.why.strip()} {finding.fix}")
                indent = " " * 8
                console.print(
                    textwrap.fill(
                        advice,
                        max(console.width, 40),
                        initial_indent=indent,
                        subsequent_indent=indent,
                        break_long_words=False,
                        break_on_hyphens=False,
                    )
                )
        console.print()
    console.print(_summary(scan))


def _headline(finding: Finding) -> str:
    often = f", {finding.count} times" if finding.count > 1 else ""
    return f"{finding.detail}{often} ({finding.rule})"


def _summary(scan: Scan) -> str:
    numbers = Counter[str](finding.severity for finding in scan.findings)
    found = ", ".join(_count(numbers[s], s) for s in _STYLES if numbers[s])
    read = _count(scan.num_files, "file")
    if scan.num_requests:
        read += f" with {_count(scan.num_requests, 'recorded request')}"
    return f"{read}: {found or 'nothing to change'}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
