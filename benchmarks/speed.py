"""Tokens per second of one kind of work: every engine in a fresh process, in turn, for several
rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.rounds import LLAMA_CPP, PEERS, Command, take_turns

PEER = LLAMA_CPP
DEFAULT = "Glimmer LLM, default"
"""What `glimmer chat` runs; the bars are held against it."""
DEMO_ENGINES: Mapping[str, Command] = {
    PEER: PEERS[PEER],
    DEFAULT: Command("glimmer_llm"),
    "Glimmer LLM, int8": Command("glimmer_llm", ("--activations", "int8")),
    "Glimmer core, int16": Command("glimmer_native", ("--activations", "int16")),
    "Glimmer core, int8": Command("glimmer_native", ("--activations", "int8")),
}


@dataclass(frozen=True, slots=True)
class Speed:
    """One kind of work on one file: tokens per second of each engine, one value per round."""

    task: str
    file: str
    tokens_per_s: Mapping[str, Sequence[float]]
    missing: Mapping[str, str]
    """Peers that could not be measured, and why."""
    foreign_load: float | None
    """Share of the processors that other programs took meanwhile."""

    def median(self, engine: str) -> float:
        return statistics.median(self.tokens_per_s[engine])

    @property
    def best_peer(self) -> str | None:
        peers = [engine for engine in self.tokens_per_s if not engine.startswith("Glimmer")]
        return max(peers, key=self.median, default=None)

    def ratios(self, engine: str, peer: str = PEER) -> list[float] | None:
        """To the peer's, round by round."""
        if peer not in self.tokens_per_s:
            return None
        pairs = zip(self.tokens_per_s[engine], self.tokens_per_s[peer], strict=True)
        return [ours / theirs for ours, theirs in pairs]


def measure(
    task: str,
    file: str,
    model: str,
    engines: Mapping[str, Command],
    *,
    num_threads: int,
    num_rounds: int,
    progress: Callable[[str], None],
    options: Sequence[str] = (),
) -> Speed:
    rounds = take_turns(
        engines,
        (task, "--model", model, "--threads", str(num_threads), *options),
        num_rounds=num_rounds,
        progress=lambda text: progress(f"{task}, {file}, {text}"),
    )
    return Speed(task, file, rounds.values("tokens_per_s"), rounds.missing, rounds.foreign_load)
