"""The project's table of bars on this machine, beside llama.cpp, ik_llama.cpp and OpenVINO."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import child
from benchmarks.machine import ForeignLoad, describe_machine
from benchmarks.peer_rows import CONTEXTS, FILES, MAX_LARGE_ROUNDS, PARTS, Options, Row, rows
from benchmarks.report import HOLDS
from benchmarks.workload import CONTEXT_PROMPT_TOKENS
from glimmer.errors import GlimmerError
from glimmer.native import instruction_set, instruction_sets
from glimmer.native.cpu import physical_cores

FILE_WIDTH = 150


def show(found: Sequence[Row]) -> Table:
    columns = ("work", "figures", "measured", "asked for", "holds")
    table = Table(*columns, title="The bars", title_justify="left")
    for row in found:
        figures = [f"{engine}: {figure}" for engine, figure in row.figures.items()]
        figures += [f"{engine}: not measured: {why}" for engine, why in row.missing.items()]
        head = (row.what, "\n".join(figures))
        for bar in row.bars:
            measured = f"{bar.name}: {bar.measured}"
            table.add_row(*head, measured, bar.asked, _verdict(bar.limit, bar.holds))
            head = ("", "")
        if not row.bars:  # no peer, no ratio
            table.add_row(*head, "-", "-", "-")
        table.add_section()
    return table


def _verdict(limit: float | None, holds: bool | None) -> str:
    return "-" if limit is None else HOLDS[holds]


def main() -> int:
    args = _parse_arguments()
    # A file has no width of its own.
    console = Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH)
    messages = Console(stderr=True)
    load, found = ForeignLoad(), []
    try:
        with messages.status("...") as status:
            options = Options(
                args.only,
                args.files,
                args.contexts,
                args.isa,
                num_rounds=args.rounds,
                num_threads=args.threads,
                progress=status.update,
            )
            for row in rows(options):
                found.append(row)
                if args.json is not None:  # a long run is not lost
                    args.json.write_text(json.dumps([_as_json(r) for r in found], indent=2) + "\n")
    except (child.ChildFailedError, GlimmerError) as error:
        messages.print(f"error: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        if not found:
            return 130
    machine = describe_machine(args.threads)
    console.print(
        f"{machine.processor}, {machine.num_threads} threads; Glimmer {machine.glimmer}, "
        f"{machine.isa}; {args.rounds} rounds, of L at most {MAX_LARGE_ROUNDS}; other programs "
        f"took {load.share() or 0:.0%}."
    )
    console.print(show(found))
    return 0


def _as_json(row: Row) -> dict[str, object]:
    bars = [asdict(bar) | {"holds": bar.holds} for bar in row.bars]
    return asdict(row) | {"bars": bars}


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-peers ARGS=...", description=__doc__)
    # The peers are compiled for AVX2.
    like_peers = [isa for isa in ("avx2",) if isa in instruction_sets()]
    parser.add_argument(
        "--only", type=_choice(PARTS), default=PARTS, metavar="A,B", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--files", type=_choice(FILES), default=FILES, metavar="A,B", help=f"of {', '.join(FILES)}"
    )
    parser.add_argument(
        "--contexts",
        type=_contexts,
        default=CONTEXTS,
        metavar="N,N",
        help=f"multiples of {CONTEXT_PROMPT_TOKENS} (default: {','.join(map(str, CONTEXTS))})",
    )
    parser.add_argument(
        "--isa",
        type=_choice(instruction_sets()),
        default=like_peers,
        metavar="A,B",
        help=f"run Glimmer with these instruction sets too, beside {instruction_set()} (default: "
        "avx2, for which the peers are compiled)",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, default=physical_cores(), metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every value")
    return parser.parse_args()


def _contexts(text: str) -> list[int]:
    found = child.numbers(text)
    if wrong := [n for n in found if n <= 0 or n % CONTEXT_PROMPT_TOKENS]:
        raise argparse.ArgumentTypeError(
            f"contexts are multiples of {CONTEXT_PROMPT_TOKENS}, but {wrong[0]} is not"
        )
    return sorted(found)


def _choice(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of names with commas between, in the order of ``known``."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = set(text.split(","))
        if unknown := chosen - set(known):
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
            )
        return tuple(name for name in known if name in chosen)

    return parse


if __name__ == "__main__":
    raise SystemExit(main())
