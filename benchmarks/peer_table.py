"""Glimmer beside llama.cpp and its fastest fork on the same files of random weights, as one table.

Prints tokens per second, the rate of the arithmetic or the memory behind them, and the ratio to the
best peer, each the median of rounds in which the engines take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import child, workload
from benchmarks.machine import ForeignLoad, describe_machine
from benchmarks.random_models import SHAPES, write_random_model
from glimmer.native.cpu import physical_cores

OURS = "Glimmer"
ENGINES: Mapping[str, tuple[str, ...]] = {
    # The peers multiply with int8 inputs: this is like with like.
    OURS: ("glimmer_llm", "--activations", "int8"),
    "llama.cpp": ("peers.llama_cpp",),
    "ik_llama.cpp": ("peers.ik_llama_cpp",),
}
FILES = ("S:q4_0", "S:q8_0", "S:q4_k", "L:q4_0")
TASKS = ("prefill", "decode", "4096", "16384")
"""A number is decoding behind so many tokens."""
BARS: Mapping[tuple[str, str], float] = {
    ("prefill", "q4_0"): 1.5,
    ("prefill", "q8_0"): 1.1,
    ("prefill", "q4_k"): 1.1,
    ("decode", "q4_0"): 1.2,
    ("decode", "q8_0"): 1.05,
    ("decode", "q4_k"): 1.05,
    ("4096", "q4_0"): 2.0,
    ("32768", "q4_0"): 3.0,
}
"""The least ratio to the best peer that the project asks for."""


@dataclass(frozen=True, slots=True)
class Row:
    file: str
    task: str
    tokens_per_s: Mapping[str, Sequence[float]]
    """By engine, a value per round."""
    missing: Mapping[str, str]

    def median(self, engine: str) -> float:
        return statistics.median(self.tokens_per_s[engine])

    @property
    def best_peer(self) -> str | None:
        peers = [engine for engine in self.tokens_per_s if engine != OURS]
        return max(peers, key=self.median, default=None)

    @property
    def ratio(self) -> float | None:
        """To the best peer, median of the rounds' own ratios."""
        if (best := self.best_peer) is None:
            return None
        pairs = zip(self.tokens_per_s[OURS], self.tokens_per_s[best], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    @property
    def bar(self) -> float | None:
        return BARS.get((self.task, self.file.partition(":")[2]))

    def rate(self, engine: str) -> str:
        """GMAC/s of a prompt, GB/s of weights else."""
        name, _, dtype = self.file.partition(":")
        shape, tokens = SHAPES[name], self.median(engine)
        if self.task == "prefill":
            return f"{tokens * shape.num_multiplied / 1e9:.0f} GMAC/s"
        return f"{tokens * shape.num_bytes(dtype) / 1e9:.1f} GB/s"


def measure(
    files: Sequence[str],
    tasks: Sequence[str],
    *,
    num_threads: int,
    num_rounds: int,
    progress: Callable[[str], None],
) -> Iterator[Row]:
    for file in files:
        name, _, dtype = file.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            progress(f"{file}: making the file")
            path = Path(folder) / "model.gguf"
            write_random_model(path, "chatglm", SHAPES[name], dtype)
            for task in tasks:
                yield _row(file, task, path, num_threads, num_rounds, progress)


def _row(
    file: str,
    task: str,
    path: Path,
    num_threads: int,
    num_rounds: int,
    progress: Callable[[str], None],
) -> Row:
    work = ("context", "--context", task) if task.isdigit() else (task,)
    tokens_per_s: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for number in range(num_rounds):
        # There and back, so that no engine always runs on the heels of the same one.
        for engine, (module, *options) in list(ENGINES.items())[:: -1 if number % 2 else 1]:
            if engine in missing:
                continue
            progress(f"{file}, {task}, round {number + 1} of {num_rounds}: {engine}")
            model = ("--model", str(path), "--threads", str(num_threads))
            try:
                found = child.run(module, *work, *model, *options)["tokens_per_s"]
            except child.ChildFailedError as error:
                missing[engine] = str(error)
                tokens_per_s.pop(engine, None)
            else:
                tokens_per_s.setdefault(engine, []).append(found)
    return Row(file, task, tokens_per_s, missing)


def show(rows: Sequence[Row]) -> Table:
    table = Table(title="Tokens per second")
    for column in ("file", "task", *ENGINES, "to the best peer", "asked for"):
        table.add_column(column, justify="left" if column in ("file", "task") else "right")
    for row in rows:
        cells = [
            f"{row.median(engine):.1f}\n{row.rate(engine)}"
            if engine in row.tokens_per_s
            else "not measured"
            for engine in ENGINES
        ]
        ratio, bar = row.ratio, row.bar
        verdict = "-" if ratio is None else f"{ratio:.2f} x"
        if ratio is not None and bar is not None:
            verdict = f"[{'green' if ratio >= bar else 'red'}]{verdict}[/]"
        task = f"decode at {row.task}" if row.task.isdigit() else row.task
        table.add_row(row.file, task, *cells, verdict, "-" if bar is None else f"{bar:g} x")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-peers ARGS=...", description=__doc__)
    parser.add_argument("--files", default=",".join(FILES), help="shape:type, with commas between")
    parser.add_argument("--tasks", default=",".join(TASKS), help="prefill, decode, or a context")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every value")
    args = parser.parse_args()
    console, messages = Console(), Console(stderr=True)
    load, rows = ForeignLoad(), []
    try:
        with messages.status("...") as status:
            for row in measure(
                args.files.split(","),
                args.tasks.split(","),
                num_threads=args.threads,
                num_rounds=args.rounds,
                progress=status.update,
            ):
                rows.append(row)
                if args.json is not None:  # a long run is not lost
                    args.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")
    except KeyboardInterrupt:
        if not rows:
            return 130
    machine = describe_machine(args.threads)
    console.print(
        f"{machine.processor}, {machine.num_threads} threads; Glimmer {machine.glimmer}, "
        f"{machine.isa}; prefill of {workload.PREFILL_TOKENS}, decode of {workload.DECODE_TOKENS} "
        f"tokens; {args.rounds} rounds; other programs took {load.share() or 0:.0%}."
    )
    console.print(show(rows))
    for row in rows:
        for engine, why in row.missing.items():
            console.print(f"{row.file}, {row.task}: {engine} was not measured: {why}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
