"""`glimmer keys`: make, list and revoke the API keys of a server."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glimmer.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from rich.table import Table

    from glimmer.server.keys import ApiKey, KeyStore

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="GLIMMER_DATABASE",
        help="postgresql://... or a SQLite file. Default: server.db in the user's data folder.",
    ),
]
MasterKeyOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        envvar="GLIMMER_MASTER_KEY_FILE",
        help="What secrets are computed from. Default: master.key beside the SQLite file.",
    ),
]

keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@keys.command()
def create(
    *,
    project: Annotated[str, typer.Option(help="Whose use it is; usage is summed by it.")],
    name: Annotated[str, typer.Option(help="A note, such as who has the key.")] = "",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this model, or with MODEL:ADAPTER only this adapter of it; repeatable. "
            "Default: all."
        ),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this one; repeatable: chat, completions, responses, embeddings, models, "
            "tokenize, files, batches, usage, admin. Default: all but admin."
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="30d|DATE", help="Days from now, or a date (00:00 UTC).")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Requests under way at once.")
    ] = None,
    rpm: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Requests per minute.")
    ] = None,
    tpm: Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens per minute.")] = None,
    rpd: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Requests per day (UTC).")
    ] = None,
    tpd: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens per day (UTC).")
    ] = None,
    database: DatabaseOption = None,
    master_key_file: MasterKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once: no server can show it again."""
    from glimmer.cli import terminal
    from glimmer.server.limits import Limits

    limits = Limits(
        concurrency=concurrency,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        requests_per_day=rpd,
        tokens_per_day=tpd,
    )
    expires_at = None if expires is None else _parse_expiry(expires)
    with _open_store(database, master_key_file, create=True) as store:
        key, text = store.create(
            project,
            name=name,
            models=model or (),
            endpoints=endpoint or (),
            expires_at=expires_at,
            limits=limits,
        )
    if as_json:
        terminal.write(json.dumps({"key": text, **_report(key)}, indent=2, ensure_ascii=False))
        terminal.write("\n")
    else:
        terminal.write(f"{text}\n")
    terminal.messages().print(
        f"Keep this key of project {key.project}: it is shown this once. "
        f"`glimmer keys revoke {key.id}` ends it.",
        style="yellow",
    )


@keys.command("list")
def list_keys(
    *,
    project: Annotated[str | None, typer.Option(help="Only this project's.")] = None,
    database: DatabaseOption = None,
    master_key_file: MasterKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the keys, without their secrets; expired and revoked ones too."""
    from glimmer.cli import terminal

    with _open_store(database, master_key_file, create=False) as store:
        found = store.list(project)
    if as_json:
        rows = [_report(key) for key in found]
        terminal.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    else:
        terminal.tables().print(_table(found))


@keys.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="The part of a key before its point.")
    ],
    *,
    database: DatabaseOption = None,
    master_key_file: MasterKeyOption = None,
) -> None:
    """End a key. Running servers refuse it within two seconds."""
    from glimmer.cli import terminal

    with _open_store(database, master_key_file, create=False) as store:
        key = store.revoke(key_id)
    assert key.revoked_at is not None
    terminal.write(f"{key.id} of project {key.project} is revoked since {_show(key.revoked_at)}.\n")


@contextmanager
def _open_store(database: str | None, file: Path | None, *, create: bool) -> Iterator[KeyStore]:
    from glimmer.server.database import Database
    from glimmer.server.keys import open_key_store
    from glimmer.server.paths import default_master_key_path

    with Database(database, create=create) as opened:
        yield open_key_store(opened, file or default_master_key_path(opened.path))


def _parse_expiry(text: str) -> datetime:
    from datetime import UTC, datetime, timedelta

    from glimmer.errors import InvalidParameterError

    try:
        if match := re.fullmatch(r"(\d+)d", text):
            return datetime.now(UTC) + timedelta(days=int(match[1]))
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # no such day, or one beyond the calendar
        pass
    raise InvalidParameterError(f"--expires must look like 30d or 2027-01-01, but it is {text!r}.")


def _state(key: ApiKey) -> str:
    from datetime import UTC, datetime

    if key.revoked_at is not None:
        return "revoked"
    is_over = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    return "expired" if is_over else "active"


def _report(key: ApiKey) -> dict[str, Any]:
    from dataclasses import asdict

    def iso(time: datetime | None) -> str | None:
        return None if time is None else time.isoformat()

    return {
        "id": key.id,
        "project": key.project,
        "name": key.name,
        "state": _state(key),
        "created_at": iso(key.created_at),
        "expires_at": iso(key.expires_at),
        "revoked_at": iso(key.revoked_at),
        "models": list(key.models),
        "endpoints": list(key.endpoints),
        "limits": asdict(key.limits),
    }


def _table(found: tuple[ApiKey, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("id", "project", "name", "state", "created", "expires", "may use", "limits"):
        # An id that is cut or folded cannot be copied.
        table.add_column(column, no_wrap=column == "id")
    for key in found:
        table.add_row(
            key.id,
            key.project,
            key.name or "-",
            _state(key),
            _show(key.created_at),
            _show(key.expires_at) if key.expires_at else "-",
            ", ".join((*key.models, *key.endpoints)) or "all",
            _show_limits(key),
        )
    return table


def _show(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _show_limits(key: ApiKey) -> str:
    limits = key.limits
    shown = (
        (limits.concurrency, "at once"),
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.requests_per_day, "requests/day"),
        (limits.tokens_per_day, "tokens/day"),
    )
    return ", ".join(f"{limit} {what}" for limit, what in shown if limit is not None) or "-"
