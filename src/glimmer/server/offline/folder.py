"""What is kept of files, batches and tasks, on disk. Knows no HTTP.

A record is a JSON file that is replaced as a whole; a content lies beside it. All are their owner's
alone, as is a folder that is made here: unlike the ledger, they hold what clients have written.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from glimmer.checkpoints.atomic import new_file
from glimmer.errors import GlimmerError, OutputError
from glimmer.server.errors import ApiError

_LOG = logging.getLogger("glimmer.server")
Record = dict[str, Any]
_ID = re.compile(r"[a-z]+-[0-9]{13}[0-9a-f]{16}")


class JobFolder:
    """Records of one kind each: "file", "batch", "task".

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._last_us = 0
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"The folder {path} cannot be made: {error.strerror}.") from error

    def new_id(self, kind: str) -> str:
        """Ids of a kind rise in the order they are asked for, with time over restarts."""
        with self._lock:
            # The clock alone may tell two ids the same, or be set back.
            self._last_us = max(time.time_ns() // 1000, self._last_us + 1)
            return f"{kind}-{self._last_us:016d}{secrets.randbits(52):013x}"

    def read(self, kind: str, record_id: str, owner: str) -> Record:
        """A record of that owner's.

        Raises:
            ApiError: of kind "not_found".
        """
        missing = ApiError("not_found", f"There is no {kind} {record_id[:80]!r}.")
        # Nothing that a client sends becomes a path unless it looks like our ids.
        if not _ID.fullmatch(record_id) or not record_id.startswith(f"{kind}-"):
            raise missing
        record = _load(self._record(record_id))
        if record is None or record["owner"] != owner:
            raise missing
        return record

    def write(self, record: Record) -> None:
        """Raises OutputError."""
        with new_file(self._record(record["id"]), overwrite=True, private=True) as stream:
            stream.write(json.dumps(record, ensure_ascii=False).encode())

    def list(self, kind: str, owner: str | None = None) -> Iterator[Record]:
        """Newest first; of one owner, or of all."""
        for path in sorted(self._path.glob(f"{kind}-*.json"), reverse=True):
            record = _load(path)
            if record is not None and owner in (None, record["owner"]):
                yield record

    def content(self, record_id: str) -> Path:
        """Where a record's content lies, or shall lie."""
        assert _ID.fullmatch(record_id)
        return self._path / f"{record_id}.content"

    def keep(self, record_id: str, source: IO[bytes]) -> int:
        """Copy a content; returns its bytes. Raises OutputError."""
        target = self.content(record_id)
        with new_file(target, private=True) as stream:
            shutil.copyfileobj(source, stream)
        return target.stat().st_size

    def append(self, record_id: str, data: bytes) -> None:
        """Add to a content, all or nothing. Raises OutputError."""
        target = self.content(record_id)
        try:
            with open(target, "ab", buffering=0, opener=_open_private) as stream:
                end = stream.tell()
                if stream.write(data) != len(data):
                    stream.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror}.") from error

    def delete(self, record_id: str) -> None:
        assert _ID.fullmatch(record_id)
        self._record(record_id).unlink(missing_ok=True)
        self.content(record_id).unlink(missing_ok=True)

    def _record(self, record_id: str) -> Path:
        return self._path / f"{record_id}.json"


def _load(path: Path) -> Record | None:
    """None where there is none, or one that somebody has damaged."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    is_whole = (
        isinstance(record, dict)
        and record.get("id") == path.stem
        and isinstance(record.get("owner"), str)
        and isinstance(record.get("reply"), dict)
    )
    return record if is_whole else None


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def file_record(file_id: str, owner: str, name: str, purpose: str, size_bytes: int) -> Record:
    reply = {
        "id": file_id,
        "object": "file",
        "bytes": size_bytes,
        "created_at": int(time.time()),
        "filename": name,
        "purpose": purpose,
        "status": "processed",
    }
    return {"id": file_id, "owner": owner, "reply": reply}


def page(records: Iterator[Record], after: str | None, limit: int) -> tuple[list[Record], bool]:
    """The records behind ``after``, and whether there are more."""
    found: list[Record] = []
    is_behind = after is None
    for record in records:
        if is_behind:
            if len(found) == limit:
                return found, True
            found.append(record)
        is_behind = is_behind or record["id"] == after
    return found, False


def disk_refusal(error: GlimmerError) -> ApiError:
    """What a client is told: the message names a path of this machine, and is for the log."""
    _LOG.error("%s", error)
    return ApiError("internal", "The server cannot write to its disk; its log says why.")
