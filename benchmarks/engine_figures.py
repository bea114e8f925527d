"""The engine's own figures: what it costs, and what its cache and its drafts save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import child
from benchmarks.machine import ForeignLoad


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """One value per round."""

    overhead: Sequence[float]
    """Share of a step with 32 sequences that is not the core's."""
    first_s: Sequence[float]
    """To the first token of a prompt of 2016 tokens ..."""
    second_s: Sequence[float]
    """... and of another one with the same first 2000."""
    copy_gain: Sequence[float]
    """Speed with drafts over speed without, where the answer repeats the prompt ..."""
    story_gain: Sequence[float]
    """... and where it does not."""
    foreign_load: float | None

    @property
    def prefix_gains(self) -> list[float]:
        return [a / b for a, b in zip(self.first_s, self.second_s, strict=True)]


def measure(
    model: str, *, num_threads: int, num_rounds: int, progress: Callable[[str], None]
) -> EngineFigures:
    load, rounds = ForeignLoad(), []
    for number in range(num_rounds):
        progress(f"engine, round {number + 1} of {num_rounds}")
        rounds.append(child.run("glimmer_engine", "--model", model, "--threads", str(num_threads)))
    return EngineFigures(
        **{
            name: [found[name] for found in rounds]
            for name in ("overhead", "first_s", "second_s", "copy_gain", "story_gain")
        },
        foreign_load=load.share(),
    )
