"""Where the server keeps its own files when nobody says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_DATA_HOME/glimmer``, or ``~/.local/share/glimmer``. It need not exist."""
    home = environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a relative path in it is to be ignored.
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "share"
    return base / "glimmer"


def default_database_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The SQLite file of keys and ledger."""
    return data_dir(environ) / "server.db"


def default_jobs_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Files, batches and answers that are fetched later."""
    return data_dir(environ) / "jobs"


def default_master_key_path(
    database_path: Path | None, environ: Mapping[str, str] = os.environ
) -> Path:
    """Beside the SQLite file, so that a folder moves as a whole; else in ``data_dir``.

    ``database_path`` is None for PostgreSQL.
    """
    folder = data_dir(environ) if database_path is None else database_path.parent
    return folder / "master.key"
