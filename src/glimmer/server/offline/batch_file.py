"""The files of a batch: a request a line, and an answer a line. A line is in memory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAX_LINE_BYTES = 16 << 20
_MAX_PROBLEMS = 100
_ENDPOINT = re.compile(r"/(?:api/paas/)?v[14]/(chat/completions|embeddings)")


def endpoint_name(url: str) -> str | None:
    """``chat/completions`` or ``embeddings``: the platforms differ in what stands before it."""
    match = _ENDPOINT.fullmatch(url)
    return None if match is None else match[1]


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers from 1."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(_MAX_LINE_BYTES):
            number += 1
            if line.strip():
                yield number, line


def check(path: Path, endpoint: str) -> tuple[int, list[dict[str, Any]]]:
    """The number of requests, and what is wrong with the first bad lines."""
    known: set[str] = set()
    problems: list[dict[str, Any]] = []
    total = 0
    for number, line in lines(path):
        total += 1
        if (problem := _problem(line, endpoint, known)) is not None:
            told = f"Line {number} {problem}."
            problems.append({"code": "invalid_line", "message": told, "line": number})
            if len(problems) == _MAX_PROBLEMS:
                break
    if not total:
        told = "The input file holds no request."
        problems.append({"code": "empty_file", "message": told, "line": None})
    return total, problems


def result(batch_id: str, number: int, custom_id: str, status: int, answer: Any) -> bytes:
    """A line of an output file."""
    told = {
        "id": f"{batch_id}-{number}",
        "custom_id": custom_id,
        "response": {
            "status_code": status,
            "request_id": answer.get("request_id") or answer.get("id", ""),
            "body": answer,
        },
        "error": None,
    }
    return json.dumps(told, ensure_ascii=False).encode() + b"\n"


def answered(path: Path) -> set[int]:
    """The numbers of the lines that were answered. A last line that was cut off is taken away."""
    found: set[int] = set()
    if not path.exists():
        return found
    with path.open("rb+") as stream:
        end = 0
        for line in stream:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            found.add(int(json.loads(line)["id"].rpartition("-")[2]))
        stream.truncate(end)
    return found


def _problem(line: bytes, endpoint: str, known: set[str]) -> str | None:
    if len(line) == _MAX_LINE_BYTES:
        return f"has more than {_MAX_LINE_BYTES >> 20} MiB"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return "is no JSON object"
    custom_id, url = value.get("custom_id"), value.get("url", endpoint)
    if not isinstance(custom_id, str) or not custom_id:
        return "has no custom_id"
    if custom_id in known:
        return f"repeats the custom_id {custom_id[:80]!r}"
    if not isinstance(value.get("body"), dict):
        return "has no body"
    if value.get("method", "POST") != "POST":
        return "has another method than POST"
    if not isinstance(url, str) or endpoint_name(url) != endpoint_name(endpoint):
        return f"has another url than the batch's {endpoint}"
    known.add(custom_id)
    return None
