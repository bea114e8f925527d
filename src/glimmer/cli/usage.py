"""`glimmer usage`: what a server's ledger sums up to."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glimmer.cli.keys import DatabaseOption
from glimmer.cli.options import JsonOption

if TYPE_CHECKING:
    from datetime import datetime

    from rich.table import Table

    from glimmer.server.ledger import UsageRow

_GROUP_COLUMNS = {
    "day": ("day",),
    "key": ("key_id", "key_name"),
    "model": ("model",),
    "project": ("project",),
}
_TOTALS = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "errors",
    "mean_latency_s",
)


def usage(
    *,
    by: Annotated[
        str, typer.Option(metavar="GROUPS", help="Some of day,key,model,project.")
    ] = "day",
    since: Annotated[
        str | None,
        typer.Option(metavar="7d|DATE", help="From then on: whole UTC days. Default: all."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="The last UTC day. Default: today.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Only this project's.")] = None,
    database: DatabaseOption = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Sum up requests and tokens by day, key, model or project."""
    from datetime import timedelta

    from glimmer.cli import terminal
    from glimmer.errors import InvalidParameterError
    from glimmer.server.database import Database
    from glimmer.server.ledger import Ledger

    if as_csv and as_json:
        raise InvalidParameterError("Choose one of --csv and --json.")
    groups: list[Any] = [name.strip() for name in by.split(",") if name.strip()]
    first = None if since is None else _parse_day(since, "--since")
    last = None if until is None else _parse_day(until, "--until")
    with Database(database, create=False) as opened, Ledger(opened) as ledger:
        rows = ledger.usage(
            groups,
            since=first,
            until=None if last is None else last + timedelta(days=1),
            project=project,
        )
    columns = [c for group, cs in _GROUP_COLUMNS.items() if group in groups for c in cs]
    columns += _TOTALS
    if as_json:
        reports = [_report(row, columns) for row in rows]
        terminal.write(json.dumps(reports, indent=2, ensure_ascii=False) + "\n")
    elif as_csv:
        terminal.write(_csv(rows, columns))
    else:
        terminal.tables().print(_table(rows, columns))


def _parse_day(text: str, option: str) -> datetime:
    """00:00 UTC of a date, or of the day so many days ago."""
    from datetime import UTC, datetime, timedelta

    from glimmer.errors import InvalidParameterError

    try:
        if match := re.fullmatch(r"(\d+)d", text):
            day = datetime.now(UTC) - timedelta(days=int(match[1]))
            return day.replace(hour=0, minute=0, second=0, microsecond=0)
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # no such day, or one before the calendar
        pass
    raise InvalidParameterError(f"{option} must look like 7d or 2027-01-01, but it is {text!r}.")


def _report(row: UsageRow, columns: list[str]) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in columns}
    if "day" in values:
        values["day"] = values["day"].isoformat()
    values["mean_latency_s"] = round(row.mean_latency_s, 6)
    return values


def _csv(rows: tuple[UsageRow, ...], columns: list[str]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_report(row, columns) for row in rows)
    return text.getvalue()


def _table(rows: tuple[UsageRow, ...], columns: list[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        is_total = column in _TOTALS
        # A key's id that is cut or folded cannot be copied.
        table.add_column(
            column.replace("_", " "),
            justify="right" if is_total else "left",
            no_wrap=column == "key_id",
        )
    for row in rows:
        report = _report(row, columns)
        table.add_row(*(_show(report[column]) for column in columns))
    return table


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value or "-")
