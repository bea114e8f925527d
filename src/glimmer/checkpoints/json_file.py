"""JSON that somebody else wrote: an object, or an error that names the file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from glimmer.errors import MalformedCheckpointError

MAX_BYTES = 100_000_000
"""No header, index or config comes near this."""
_MAX_DEPTH = 64


def read_object(path: Path) -> dict[str, Any]:
    """Raises MalformedCheckpointError: not a JSON object, a key twice, far too large or deep."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise MalformedCheckpointError(
                f"{path} has {path.stat().st_size} bytes; at most {MAX_BYTES} are read. It is not "
                "what its name says: download it again."
            )
        data = path.read_bytes()
    except OSError as error:
        raise MalformedCheckpointError(
            f"{path} cannot be read: {error.strerror or error}"
        ) from error
    return parse_object(data, str(path))


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """The object in ``data``; ``what`` names it in errors, which are as of ``read_object``."""
    if data.startswith(b"version https://git-lfs"):
        raise MalformedCheckpointError(
            f"{what} is a Git LFS pointer, a few lines of text in place of the file; fetch the "
            "file itself with `git lfs pull`"
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise MalformedCheckpointError(f"{what} has the key {twice!r:.80} twice; it is damaged")
        return found

    try:
        value = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: JSON's own errors and bad UTF-8
        raise MalformedCheckpointError(
            f"{what} is not JSON ({error}); it is truncated or damaged: download it again"
        ) from error
    if not isinstance(value, dict):
        raise MalformedCheckpointError(
            f"{what} holds a {type(value).__name__}, but it must be an object ({{...}})"
        )
    _refuse_depth(value, what)
    return value


def _refuse_depth(value: dict[str, Any], what: str) -> None:
    """Whoever takes the value apart, or shows a part of it in an error, may do so by recursion."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inside += item.values()
            elif isinstance(item, list):
                inside += item
        if not inside:
            return
        level = inside
    raise MalformedCheckpointError(
        f"{what} is nested more than {_MAX_DEPTH} levels deep; it is not what its name says: "
        "download it again"
    )
