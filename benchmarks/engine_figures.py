"""The engine's own figures: what it costs, and what its cache and its drafts save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import child
from benchmarks.machine import ForeignLoad

COPIES = ("edit", "quote")
"""The drafts' work whose answer repeats the request."""


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """One value per round; of drafts, one per pair of answers in one process."""

    overhead: Sequence[float]
    """Share of a step with 32 sequences that is not the core's."""
    first_s: Sequence[float]
    """To the first token of a prompt of 2016 tokens ..."""
    second_s: Sequence[float]
    """... and of another one with the same first 2000."""
    draft_gains: Mapping[str, Sequence[float]]
    """Speed with drafts over speed without, by the work (see ``glimmer_drafts``)."""
    foreign_load: float | None

    @property
    def prefix_gains(self) -> list[float]:
        return [a / b for a, b in zip(self.first_s, self.second_s, strict=True)]


def measure(
    model: str, *, num_threads: int, num_rounds: int, progress: Callable[[str], None]
) -> EngineFigures:
    load, rounds = ForeignLoad(), []
    args = ("--model", model, "--threads", str(num_threads))
    for number in range(num_rounds):
        progress(f"engine, round {number + 1} of {num_rounds}")
        rounds.append(child.run("glimmer_engine", *args))
    progress("drafts")
    return EngineFigures(
        **{name: [found[name] for found in rounds] for name in ("overhead", "first_s", "second_s")},
        draft_gains=measure_drafts(model, num_threads),
        foreign_load=load.share(),
    )


def measure_drafts(model: str, num_threads: int) -> dict[str, list[float]]:
    """Speed with drafts over speed without, by the work; a value per pair of answers."""
    found = child.run("glimmer_drafts", "--model", model, "--threads", str(num_threads))
    return {work: list(figures["gain"]) for work, figures in found.items()}
