"""Prefill and decode: every engine in a fresh process, in turn, for several rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import child
from benchmarks.machine import ForeignLoad

PEER = "llama.cpp"
DEFAULT = "Glimmer LLM, default"
"""What `glimmer chat` runs; the bars are held against it."""
_GLIMMER: Mapping[str, tuple[str, ...]] = {
    DEFAULT: ("glimmer_llm",),
    "Glimmer LLM, int8": ("glimmer_llm", "--activations", "int8"),
    "Glimmer core, int16": ("glimmer_native", "--activations", "int16"),
    "Glimmer core, int8": ("glimmer_native", "--activations", "int8"),
}


@dataclass(frozen=True, slots=True)
class Speed:
    """One kind of work on one file: tokens per second of each engine, one value per round."""

    task: str
    file: str
    tokens_per_s: Mapping[str, Sequence[float]]
    foreign_load: float | None
    """Share of the processors that other programs took meanwhile."""

    def median(self, engine: str) -> float:
        return statistics.median(self.tokens_per_s[engine])

    def ratios(self, engine: str) -> list[float] | None:
        """To llama.cpp's, round by round."""
        if PEER not in self.tokens_per_s:
            return None
        pairs = zip(self.tokens_per_s[engine], self.tokens_per_s[PEER], strict=True)
        return [ours / theirs for ours, theirs in pairs]


def measure(
    task: str,
    file: str,
    model: str,
    *,
    with_peer: bool,
    num_threads: int,
    num_rounds: int,
    progress: Callable[[str], None],
) -> Speed:
    engines = {PEER: ("peers.llama_cpp",), **_GLIMMER} if with_peer else dict(_GLIMMER)
    tokens_per_s: dict[str, list[float]] = {name: [] for name in engines}
    load = ForeignLoad()
    for round_number in range(num_rounds):
        # There and back, so that no engine always runs on the heels of the same one.
        order = list(engines.items())[:: -1 if round_number % 2 else 1]
        for name, (module, *options) in order:
            progress(f"{task}, {file}, round {round_number + 1} of {num_rounds}: {name}")
            arguments = (task, "--model", model, "--threads", str(num_threads), *options)
            tokens_per_s[name].append(child.run(module, *arguments)["tokens_per_s"])
    return Speed(task, file, tokens_per_s, load.share())
