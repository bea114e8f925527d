"""Measure Glimmer on this machine, beside llama.cpp where that is installed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks import (
    accuracy,
    bars,
    batches,
    child,
    engine_figures,
    memory,
    report,
    server_figures,
    speed,
    startup,
)
from benchmarks.machine import describe_machine, find_peer
from benchmarks.model_files import model_files
from benchmarks.results import Results
from glimmer.catalogue import find_file
from glimmer.errors import GlimmerError
from glimmer.native.cpu import physical_cores

SECTIONS = (
    "prefill", "decode", "startup", "memory", "accuracy", "perplexity", "batches", "engine",
    "server",
)  # fmt: skip
Progress = Callable[[str], None]


def main() -> int:
    args = _parse_arguments()
    console, messages = Console(), Console(stderr=True)
    try:
        with messages.status("Looking at this machine ...") as status:
            results = run(args, lambda text: status.update(f"{text} ..."))
    except (child.ChildFailedError, GlimmerError) as error:
        messages.print(f"error: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    report.show(console, results)
    if args.json is not None:
        data = asdict(results)
        data["bars"] = [asdict(bar) | {"holds": bar.holds} for bar in bars.bars(results)]
        args.json.write_text(json.dumps(data, indent=2) + "\n")
    return 0


def run(args: argparse.Namespace, progress: Progress) -> Results:
    model = str(find_file(args.model)[0].resolve())
    peer = find_peer(model, args.threads)
    with_peer = peer.version is not None

    engines = {name: c for name, c in speed.DEMO_ENGINES.items() if with_peer or not c.is_peer}
    speeds: list[speed.Speed] = []
    perplexity: list[accuracy.Perplexity] = []
    with ExitStack() as stack:
        files: Mapping[str, str] = {}
        if set(args.only) & {"prefill", "decode", "perplexity"}:
            made = model_files(model, args.threads, with_peer, progress)
            files = stack.enter_context(made)
        for task in ("prefill", "decode"):
            if task in args.only:
                speeds += [
                    speed.measure(
                        task,
                        file,
                        path,
                        engines,
                        num_threads=args.threads,
                        num_rounds=args.rounds,
                        progress=progress,
                    )
                    for file, path in files.items()
                ]
        if "perplexity" in args.only:
            perplexity += accuracy.measure_perplexity(
                files, with_peer=with_peer, num_threads=args.threads, progress=progress
            )
    return Results(
        machine=describe_machine(args.threads),
        peer=peer,
        model=Path(model).name,
        speeds=speeds,
        startup=startup.measure(args.model, args.threads, args.rounds, progress)
        if "startup" in args.only
        else None,
        memory=memory.measure(
            model,
            with_peer=with_peer,
            num_threads=args.threads,
            num_rounds=args.rounds,
            progress=progress,
        )
        if "memory" in args.only
        else None,
        accuracy=accuracy.measure(
            model, with_peer=with_peer, num_threads=args.threads, progress=progress
        )
        if "accuracy" in args.only
        else {},
        perplexity=perplexity,
        batches=batches.measure(num_threads=args.threads, num_rounds=args.rounds, progress=progress)
        if "batches" in args.only
        else None,
        engine=engine_figures.measure(
            model, num_threads=args.threads, num_rounds=args.rounds, progress=progress
        )
        if "engine" in args.only
        else None,
        server=server_figures.measure(
            model, num_threads=args.threads, num_rounds=args.rounds, progress=progress
        )
        if "server" in args.only
        else None,
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        type=_sections,
        default=SECTIONS,
        metavar="A,B,...",
        help=f"what to measure, of {', '.join(SECTIONS)} (default: all)",
    )
    parser.add_argument(
        "--rounds", type=_positive, default=5, metavar="N", help="fresh processes per measurement"
    )
    parser.add_argument(
        "--threads", type=_positive, default=physical_cores(), metavar="N", help="of every engine"
    )
    parser.add_argument(
        "--model", default="demo", help='a GGUF file, or the name of a release (default: "demo")'
    )
    parser.add_argument(
        "--json", type=_new_file, metavar="FILE", help="write every value there too"
    )
    return parser.parse_args()


def _sections(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if unknown := set(chosen) - set(SECTIONS):
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}"
        )
    return chosen


def _new_file(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: no such folder")
    return path


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
