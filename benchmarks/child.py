"""Runs a module of this folder in a fresh process and takes the one JSON line that it prints."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import workload

ROOT = Path(__file__).parents[1]


class ChildFailedError(Exception):
    """The process ended with an error; the message says how."""


def run(
    module: str, *args: str, environment: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The object that ``python -m benchmarks.<module> args`` prints as its last line.

    ``environment`` is added to this process's own.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *args]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    if done.returncode != 0:
        raise ChildFailedError(f"{module}: {describe_failure(done.returncode, done.stderr)}")
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def describe_failure(returncode: int, stderr: str) -> str:
    """How a process ended, and the last thing that it said."""
    how = f"exit code {returncode}"
    if returncode < 0:
        how = f"killed by {signal.Signals(-returncode).name}"
    lines = stderr.strip().splitlines()
    return f"{how}: {lines[-1]}" if lines else how


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every engine's process takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=workload.REPEATS)
    return parser


def numbers(text: str) -> list[int]:
    """An argument of whole numbers with commas between."""
    return [int(number) for number in text.split(",")]
