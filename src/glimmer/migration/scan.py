"""Walks files and folders and has each read by who knows its kind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from glimmer.errors import UsageError
from glimmer.migration.code import check_python
from glimmer.migration.finding import FileFindings, Finding
from glimmer.migration.requests import as_call, check_requests
from glimmer.migration.rules import RULES, check_call
from glimmer.migration.target import Target
from glimmer.migration.text import check_text, speaks_of_an_api

MAX_FILE_BYTES = 1 << 20
"""Of source code and text; recordings are read line by line and may be of any size."""
_RECORDINGS = (".jsonl", ".ndjson")
_PYTHON = (".py", ".pyi", ".pyw")
_TEXT = (
    *(".js", ".ts", ".jsx", ".tsx", ".mjs", ".cjs", ".vue", ".svelte", ".html"),
    *(".sh", ".bash", ".zsh", ".fish", ".ps1", ".bat", ".cmd"),
    *(".go", ".java", ".kt", ".scala", ".rs", ".rb", ".php", ".cs", ".swift", ".c", ".cc", ".cpp"),
    *(".yaml", ".yml", ".toml", ".json", ".ini", ".cfg", ".conf", ".env", ".properties"),
    *(".md", ".rst", ".txt", ".ipynb", ".http"),
)
_NAMES = ("Dockerfile", "Makefile", ".env")
_SKIPPED = {
    *(".git", ".hg", ".svn", "node_modules", "venv", ".venv", "__pycache__", "site-packages"),
    *(".tox", ".nox", ".mypy_cache", ".ruff_cache", ".pytest_cache", "dist", "build", "target"),
}
_HEAD_BYTES = 8192


@dataclass
class Scan:
    """What reading files and folders gave."""

    findings: list[Finding] = field(default_factory=list)
    num_files: int = 0
    """Those that were read, whether or not something was found."""
    num_requests: int = 0
    """In recordings."""


def scan_paths(paths: Iterable[str | os.PathLike[str]], target: Target) -> Scan:
    """Check files and whole folders. Links to folders are not followed.

    Raises:
        UsageError: a path does not exist.
    """
    scan = Scan()
    for path in map(Path, paths):
        if not path.exists() and not path.is_symlink():
            raise UsageError(f"There is no file or folder {path}.")
        if path.is_dir():
            for file in _files(path):
                _scan_file(file, target, scan, is_named=False)
        else:
            _scan_file(path, target, scan, is_named=True)
    return scan


def _files(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):  # a folder that may not be read is passed over
        folders[:] = sorted(f for f in folders if f not in _SKIPPED and not _is_venv(name, f))
        for file in sorted(files):
            path = Path(name, file)
            if path.suffix.lower() in (*_RECORDINGS, *_PYTHON, *_TEXT) or file in _NAMES:
                yield path


def _is_venv(parent: str, folder: str) -> bool:
    return Path(parent, folder, "pyvenv.cfg").exists()


def _scan_file(path: Path, target: Target, scan: Scan, *, is_named: bool) -> None:
    """Read one file. One that the user named is missed aloud, one from a folder in silence where
    it is merely of another kind."""
    recording = path.suffix.lower() in _RECORDINGS
    findings = FileFindings(str(path), target.direction, by_line=not recording)
    try:
        if not path.is_file():
            if is_named:
                _miss(findings, "not a regular file")
        elif recording:
            _scan_recording(path, target, findings, scan, is_named=is_named)
        else:
            _scan_source(path, target, findings, scan, is_named=is_named)
    except OSError as error:
        _miss(findings, error.strerror or "it cannot be read")
    scan.findings += findings.sorted()


def _scan_recording(
    path: Path, target: Target, findings: FileFindings, scan: Scan, *, is_named: bool
) -> None:
    with path.open("rb") as stream:
        count = check_requests(stream, target, findings)
    if count == 0:
        findings.clear()  # a data set of another kind: its lines need no mending
        if is_named:
            _miss(findings, "no request in it")
        return
    scan.num_files += 1
    scan.num_requests += count


def _scan_source(
    path: Path, target: Target, findings: FileFindings, scan: Scan, *, is_named: bool
) -> None:
    with path.open("rb") as stream:
        source = stream.read(MAX_FILE_BYTES + 1)
    if len(source) > MAX_FILE_BYTES:
        if is_named or path.suffix.lower() in _PYTHON:
            _miss(findings, f"larger than {MAX_FILE_BYTES >> 20} MiB")
        return
    if b"\0" in source[:_HEAD_BYTES]:
        if is_named:
            _miss(findings, "not text")
        return
    scan.num_files += 1
    if path.suffix.lower() in _PYTHON:
        check_python(source, target, findings)
        return
    text = source.decode("utf-8", errors="replace")
    if (count := _requests_in_json(path, text, target, findings)) > 0:
        scan.num_requests += count
    elif is_named or speaks_of_an_api(text):
        check_text(text, target, findings)


def _requests_in_json(path: Path, text: str, target: Target, findings: FileFindings) -> int:
    """A request, or a list of them, as a JSON file of its own."""
    if path.suffix.lower() != ".json":
        return 0
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return 0
    calls = [as_call(entry, None) for entry in (value if isinstance(value, list) else [value])]
    found = [call for call in calls if call is not None]
    for call in found:
        check_call(call, target, findings)
    return len(found)


def _miss(findings: FileFindings, reason: str) -> None:
    findings.add(RULES["unreadable-file"], reason)
