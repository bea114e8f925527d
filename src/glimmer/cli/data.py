"""`glimmer data check` and `glimmer data convert`: files of training data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from glimmer.cli.options import JsonOption

if TYPE_CHECKING:
    from glimmer.training.data import FileCheck

_KEYS_SHOWN = 8

data = typer.Typer(
    help="Look at training data, and write it in another form.", no_args_is_help=True
)
FormatOption = Annotated[
    Literal[
        "auto", "messages", "sharegpt", "conversations", "alpaca", "preference", "prompt-response"
    ],
    typer.Option(help="The form of the records; auto tells it by their keys."),
]
TargetOption = Annotated[
    Literal["messages", "sharegpt", "conversations", "alpaca", "prompt-response"],
    typer.Option(help="The form to write."),
]
PromptColumn = Annotated[
    str, typer.Option(metavar="KEY", help="What prompt-response calls the prompt.")
]
ResponseColumn = Annotated[str, typer.Option(metavar="KEY", help="What it calls the answer.")]
HistoryColumn = Annotated[str, typer.Option(metavar="KEY", help="What it calls earlier rounds.")]


@data.callback()
def _group() -> None:
    pass


@data.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, or a JSON list.")],
    *,
    model: Annotated[
        str | None,
        typer.Option(help="Whose tokens to count; its weights are not loaded."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Name the family instead of recognising it.")
    ] = None,
    format: FormatOption = "auto",
    prompt_column: PromptColumn = "prompt",
    response_column: ResponseColumn = "response",
    history_column: HistoryColumn = "history",
    max_length: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Longer sequences are too long.")
    ] = None,
    too_long: Annotated[
        Literal["cut", "skip"], typer.Option(help="What training will do with them.")
    ] = "cut",
    show: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Show the first N examples, what is trained highlighted."
        ),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Read training data as a training run would. Ends with 1 if a record is broken."""
    from glimmer.cli import terminal
    from glimmer.errors import UsageError
    from glimmer.training.data import Columns, check_file, open_chat

    if model is None and (show or max_length is not None):
        raise UsageError("--show and --max-length need --model, whose tokens they are about.")
    opened = None if model is None else open_chat(model, family=family)
    found = check_file(
        file,
        format,
        columns=Columns(prompt_column, response_column, history_column),
        model=opened,
        max_length=max_length,
        too_long=too_long,
        show=show,
    )
    if as_json:
        terminal.write(json.dumps(_report(found), indent=2, ensure_ascii=False) + "\n")
    else:
        if opened is not None:
            from glimmer.cli.label_view import print_labels

            for example in found.shown:
                print_labels(example, opened[1])
        for problem in found.report.problems:
            terminal.write(terminal.printable(f"{problem}\n"))
        if unlisted := found.report.num_problems - len(found.report.problems):
            terminal.write(f"... and {unlisted} more\n")
        terminal.tables().print(_table(found))
    if found.report.num_problems:
        raise typer.Exit(1)


@data.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="JSONL, or a JSON list.")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="A JSON list if it ends with .json, else JSONL.")
    ],
    *,
    to: TargetOption,
    format: FormatOption = "auto",
    prompt_column: PromptColumn = "prompt",
    response_column: ResponseColumn = "response",
    history_column: HistoryColumn = "history",
    skip: Annotated[
        bool, typer.Option("--skip", help="Leave out what is broken or cannot be expressed.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Write training data in another form. What that form cannot express is refused by line."""
    from glimmer.cli import terminal
    from glimmer.training.data import Columns
    from glimmer.training.data import convert as convert_data

    report = convert_data(
        source,
        target,
        to,
        format=format,
        columns=Columns(prompt_column, response_column, history_column),
        skip=skip,
        overwrite=force,
    )
    for problem in report.problems:
        terminal.messages().print(terminal.printable(f"left out: {problem}"))
    terminal.write(f"{target}: {report.num_examples} examples in the form {to}\n")


def _report(found: FileCheck) -> dict[str, Any]:
    from dataclasses import asdict

    from glimmer.training.data.checking import percentile

    report: dict[str, Any] = {
        "examples": found.report.num_examples,
        "preferences": found.num_preferences,
        "formats": dict(found.report.formats),
        "other_keys": dict(found.other_keys),
        "num_problems": found.report.num_problems,
        "problems": [asdict(problem) for problem in found.report.problems],
    }
    if found.encoding is not None:
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        report["sequences"] = found.encoding.num_encoded
        report["tokens"] = found.encoding.num_tokens
        report["trained_tokens"] = found.encoding.num_trained_tokens
        report["cut"] = found.encoding.num_cut
        report["skipped"] = found.encoding.num_skipped
        report["lengths"] = {
            name: percentile(found.lengths, share) if found.lengths else 0
            for name, share in shares.items()
        }
    return report


def _table(found: FileCheck) -> object:
    from rich.table import Table

    from glimmer.cli import terminal

    report = _report(found)
    table = Table.grid(padding=(0, 2))
    forms = ", ".join(f"{count} {name}" for name, count in report["formats"].items())
    table.add_row("examples", f"{report['examples']:,}", forms)
    if keys := [*report["other_keys"]]:
        named = ", ".join(map(repr, keys[:_KEYS_SHOWN])) + (
            ", ..." if len(keys) > _KEYS_SHOWN else ""
        )
        table.add_row("other keys", f"{len(keys):,}", terminal.printable(f"{named}: not read"))
    if report["preferences"]:
        table.add_row("preferences", f"{report['preferences']:,}", "two answers each")
    if "sequences" in report:
        trained = f"{report['trained_tokens']:,} of them trained"
        table.add_row("sequences", f"{report['sequences']:,}", "")
        table.add_row("tokens", f"{report['tokens']:,}", trained)
        lengths = "   ".join(f"{name} {value:,}" for name, value in report["lengths"].items())
        table.add_row("lengths", "", lengths)
        table.add_row("too long", f"{report['cut'] + report['skipped']:,}",
                      f"{report['cut']:,} cut, {report['skipped']:,} left out")  # fmt: skip
    table.add_row("broken", f"{report['num_problems']:,}", "" if report["num_problems"] else "none")
    return table
