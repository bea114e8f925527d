"""Recorded results of reference implementations, kept in a folder beside the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "golden"


def golden(name: str) -> Any:
    """The parsed JSON file ``name`` of the golden folder; skips the test where it is absent."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no golden results at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def folder(name: str) -> Path:
    """The folder ``name`` of the golden folder; skips the test where it is absent."""
    path = FOLDER / name
    if not path.is_dir():
        pytest.skip(f"no golden results at {path}")
    return path
