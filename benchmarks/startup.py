"""How long a person waits: import, --help, and the first token of an answer."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import ChildFailedError, describe_failure

QUESTION = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class StartUp:
    """Seconds, one value per round."""

    import_s: Sequence[float]
    """`import glimmer`, on top of Python's own start."""
    import_llm_s: Sequence[float]
    """`from glimmer import LLM`, which brings in the engine."""
    help_s: Sequence[float]
    """`glimmer --help`, from the start of the process to its end."""
    first_token_s: Sequence[float]
    """`glimmer chat -p ...`, from the start of the process to the first byte of the answer."""


def measure(
    model: str, num_threads: int, num_rounds: int, progress: Callable[[str], None]
) -> StartUp:
    glimmer = str(Path(sysconfig.get_path("scripts")) / "glimmer")
    chat = [glimmer, "chat", model, "-p", QUESTION, "--threads", str(num_threads)]

    def rounds(what: str, measure: Callable[[], float]) -> list[float]:
        progress(f"start-up: {what}")
        measure()  # fills the system's file cache
        return [measure() for _ in range(num_rounds)]

    return StartUp(
        import_s=rounds("import glimmer", lambda: _import_s("import glimmer")),
        import_llm_s=rounds("import LLM", lambda: _import_s("from glimmer import LLM")),
        help_s=rounds("glimmer --help", lambda: _total_s([glimmer, "--help"])),
        first_token_s=rounds("the first token", lambda: _first_byte_s(chat)),
    )


def medians(result: StartUp) -> dict[str, float]:
    return {name: statistics.median(getattr(result, name)) for name in StartUp.__slots__}


def _import_s(statement: str) -> float:
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.check_output([sys.executable, "-c", code]))


def _total_s(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return time.perf_counter() - start


def _first_byte_s(command: Sequence[str]) -> float:
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            assert process.stdout is not None
            first = os.read(process.stdout.fileno(), 1)
            elapsed = time.perf_counter() - start
            process.stdout.read()
        if process.returncode != 0 or not first:
            errors.seek(0)
            how = describe_failure(process.returncode, errors.read().decode(errors="replace"))
            raise ChildFailedError(f"glimmer chat: {how}")
    return elapsed
