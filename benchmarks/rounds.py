"""Engines in turn, each in a fresh process, for several rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import child
from benchmarks.machine import ForeignLoad
from glimmer.native import instruction_set

LLAMA_CPP = "llama.cpp"


@dataclass(frozen=True, slots=True)
class Command:
    """How an engine's process is started."""

    module: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def on(self, model: Path) -> Command:
        """The same, with a model's file among its options."""
        return replace(self, options=("--model", str(model), *self.options))

    @property
    def is_peer(self) -> bool:
        return self.module.startswith("peers.")


PEERS: Mapping[str, Command] = {
    LLAMA_CPP: Command("peers.llama_cpp"),
    "ik_llama.cpp": Command("peers.ik_llama_cpp"),
}


@dataclass(frozen=True, slots=True)
class Rounds:
    results: Mapping[str, Sequence[dict[str, Any]]]
    """By engine, what its process printed in each round."""
    missing: Mapping[str, str]
    """Peers that could not be measured, and why."""
    foreign_load: float | None
    """Share of the processors that other programs took meanwhile."""

    def values(self, name: str) -> dict[str, list[Any]]:
        """One of the things that the processes printed, by engine."""
        return {
            engine: [result[name] for result in results] for engine, results in self.results.items()
        }


def take_turns(
    engines: Mapping[str, Command],
    arguments: Sequence[str],
    *,
    num_rounds: int,
    progress: Callable[[str], None],
) -> Rounds:
    """Run every engine once a round. A peer that fails is left out.

    Raises:
        ChildFailedError: Glimmer failed.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    missing: dict[str, str] = {}
    load = ForeignLoad()
    for number in range(num_rounds):
        # There and back, so that no engine always runs on the heels of the same one.
        for name, command in list(engines.items())[:: -1 if number % 2 else 1]:
            if name in missing:
                continue
            progress(f"round {number + 1} of {num_rounds}: {name}")
            try:
                found = child.run(
                    command.module, *arguments, *command.options, environment=command.environment
                )
            except child.ChildFailedError as error:
                if not command.is_peer:
                    raise
                missing[name] = str(error)
                results.pop(name, None)
            else:
                results.setdefault(name, []).append(found)
    return Rounds(
        {name: results[name] for name in engines if name in results}, missing, load.share()
    )


def our_engines(command: Command, isas: Sequence[str] = ()) -> dict[str, Command]:
    """Glimmer as it runs by default, and with other instruction sets. Their names tell them apart
    where there are several."""
    best = instruction_set()
    others = [isa for isa in isas if isa != best]
    if not others:
        return {"Glimmer": command}
    return {
        f"Glimmer ({isa})": replace(command, environment={"GLIMMER_ISA": isa})
        for isa in (best, *others)
    }
