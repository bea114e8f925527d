"""How long a load takes and what memory it needs at most: a file, and the folder packed from it.

Each load is a process of its own; the first, which fills the system's file cache, does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import glimmer
from benchmarks import child, workload
from benchmarks.machine import ForeignLoad, describe_machine
from benchmarks.process_memory import peak_bytes
from benchmarks.random_models import SHAPES, write_random_model
from glimmer.checkpoints.packed import WEIGHTS_FILE
from glimmer.export import convert
from glimmer.native.cpu import physical_cores

ALLOWANCE_BYTES = 100 * 10**6
"""What a process may hold beside 1.05 times its file and the KV cache that it uses."""
OURS = ("Glimmer", "Glimmer packed")
_ENGINES: Mapping[str, tuple[str, str]] = {
    "Glimmer": ("glimmer_llm", "file"),
    "Glimmer packed": ("glimmer_llm", "packed"),
    "llama.cpp": ("peers.llama_cpp", "file"),
    "ik_llama.cpp": ("peers.ik_llama_cpp", "file"),
}


@dataclass(frozen=True, slots=True)
class Load:
    engine: str
    seconds: Sequence[float]
    """From the call that loads to a model that takes tokens, one value per round."""
    first_token_s: Sequence[float]
    """The same and one token: an engine that maps its file may read it only then."""
    peak_bytes: int
    """Median, after that token."""
    file_bytes: int
    kv_bytes: int

    @property
    def allowed_bytes(self) -> float:
        return 1.05 * self.file_bytes + self.kv_bytes + ALLOWANCE_BYTES


def weights_bytes(model: str) -> int:
    """Of a model's file, or of the file of weights in its packed folder."""
    path = Path(model)
    return (path / WEIGHTS_FILE if path.is_dir() else path).stat().st_size


def kv_bytes(model: str, num_tokens: int) -> int:
    """Of a float16 cache. Reads the file's header: to be called when memory has been looked at."""
    per_token = glimmer.inspect(model).kv_bytes_per_token
    assert per_token is not None
    return per_token * num_tokens


def of_loaded(
    engine: workload.Engine, model: str, context: int, start: float, load_s: float
) -> dict[str, float]:
    """What a peer's process reports of its load, which began at ``start``."""
    engine.forward([1])
    first_token_s, peak = time.perf_counter() - start, peak_bytes()
    return {
        "seconds": load_s,
        "first_token_s": first_token_s,
        "peak_bytes": peak,
        "file_bytes": weights_bytes(model),
        "kv_bytes": kv_bytes(model, context),
    }


def measure(engine: str, model: str, *, num_threads: int, num_rounds: int) -> Load:
    """Raises ChildFailedError where the engine is not installed or does not load the file."""
    module, _ = _ENGINES[engine]
    arguments = ("load", "--model", model, "--threads", str(num_threads))
    child.run(module, *arguments)
    found = [child.run(module, *arguments) for _ in range(num_rounds)]
    return Load(
        engine,
        [one["seconds"] for one in found],
        [one["first_token_s"] for one in found],
        round(statistics.median(one["peak_bytes"] for one in found)),
        found[-1]["file_bytes"],
        found[-1]["kv_bytes"],
    )


def _table(title: str, loads: Sequence[Load]) -> Table:
    table = Table(title=title)
    for column in ("engine", "load", "and a token", "peak", "peak - KV, of the file", "allowed"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for load in loads:
        table.add_row(
            load.engine,
            f"{statistics.median(load.seconds):.2f} s",
            f"{statistics.median(load.first_token_s):.2f} s",
            f"{load.peak_bytes / 1e6:.0f} MB",
            f"{(load.peak_bytes - load.kv_bytes) / load.file_bytes:.3f} x",
            f"{load.allowed_bytes / 1e6:.0f} MB",
        )
    return table


def measure_all(
    path: Path,
    *,
    num_threads: int,
    num_rounds: int,
    progress: Callable[[str], None],
    engines: Sequence[str] = tuple(_ENGINES),
) -> tuple[list[Load], dict[str, str]]:
    """Every engine's load of a GGUF file, and ours of the folder packed from it; and why an engine
    is missing."""
    loads, missing = [], {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {"file": path, "packed": Path(folder) / "packed"}
        if any(_ENGINES[engine][1] == "packed" for engine in engines):
            progress("packing")
            convert(path, paths["packed"], "packed")
        # Not in turns: each finds the file in the cache as its own last load left it.
        for engine in engines:
            progress(f"load: {engine}")
            model = str(paths[_ENGINES[engine][1]])
            try:
                loads.append(measure(engine, model, num_threads=num_threads, num_rounds=num_rounds))
            except child.ChildFailedError as error:
                missing[engine] = str(error)
    return loads, missing


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_times", description=__doc__)
    parser.add_argument("--file", default="L:q4_0", help="shape:type of a file to be made")
    parser.add_argument("--model", metavar="FILE", help="a GGUF file to take in its place")
    parser.add_argument("--engines", default=",".join(_ENGINES), help="with commas between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every value")
    args = parser.parse_args()
    console, messages = Console(), Console(stderr=True)
    foreign = ForeignLoad()
    with messages.status("...") as status, tempfile.TemporaryDirectory() as folder:
        path = Path(args.model) if args.model else Path(folder) / "model.gguf"
        if args.model is None:
            status.update(f"{args.file}: making the file")
            shape, _, dtype = args.file.partition(":")
            write_random_model(path, "chatglm", SHAPES[shape], dtype)
        loads, missing = measure_all(
            path,
            num_threads=args.threads,
            num_rounds=args.rounds,
            progress=status.update,
            engines=args.engines.split(","),
        )
    for engine, why in missing.items():
        messages.print(f"{engine} was not measured: {why}", markup=False)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(load) for load in loads], indent=2) + "\n")
    machine = describe_machine(args.threads)
    console.print(
        f"{machine.processor}, {machine.num_threads} threads; Glimmer {machine.glimmer}, "
        f"{machine.isa}; {args.rounds} rounds; other programs took {foreign.share() or 0:.0%}."
    )
    console.print(_table(args.model or args.file, loads))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
