"""Many sequences at once: every engine in a fresh process, in turn, for several rounds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import workload
from benchmarks.random_models import Layout, write_random_model
from benchmarks.rounds import PEERS, Command, take_turns

SIZES = workload.BATCH_SIZES
OURS = "Glimmer LLM, int8"
"""The peers multiply int4 weights with int8 inputs, so this is like with like."""
OUR_ENGINES: Mapping[str, Command] = {
    OURS: Command("glimmer_llm", ("--activations", "int8")),
    "Glimmer LLM, default": Command("glimmer_llm"),
}
WIDE_PEER = "OpenVINO GenAI"
"""It may use AVX-512 and AMX."""
_OPENVINO: Mapping[str, Command] = {
    "OpenVINO GenAI, AVX2": Command("peers.openvino_genai", ("--avx2",)),
    WIDE_PEER: Command("peers.openvino_genai"),
}


@dataclass(frozen=True, slots=True)
class Batches:
    """Generated tokens per second, one value per round, by engine and number of sequences."""

    tokens_per_s: Mapping[str, Mapping[int, Sequence[float]]]
    """Prompts included in the time."""
    decode_tokens_per_s: Mapping[str, Mapping[int, Sequence[float]]]
    """Of steps that read no prompt; Glimmer's alone."""
    missing: Mapping[str, str]
    """Engines that could not be measured, and why."""
    foreign_load: float | None

    def median(self, engine: str, size: int) -> float:
        return statistics.median(self.tokens_per_s[engine][size])

    def best(self, engine: str) -> float:
        """At any size."""
        return max(self.median(engine, size) for size in SIZES)

    def best_peer(self, *, wide: bool = False) -> str | None:
        """The fastest engine of others at any size: for AVX2, unless ``wide``."""
        peers = [
            engine
            for engine in self.tokens_per_s
            if not engine.startswith("Glimmer") and (wide or engine != WIDE_PEER)
        ]
        return max(peers, key=self.best, default=None)

    def smallest_rise(self, engine: str) -> float:
        """The least ratio of a batch size's speed to the best of smaller ones: below 1 is a dip."""
        speeds = [self.median(engine, size) for size in SIZES]
        return min(speeds[i] / max(speeds[:i]) for i in range(1, len(speeds)))


def measure(
    *,
    num_threads: int,
    num_rounds: int,
    progress: Callable[[str], None],
    ours: Mapping[str, Command] = OUR_ENGINES,
) -> Batches:
    with _files(progress) as files:
        # OpenVINO knows no GLM in GGUF.
        engines = {
            name: command.on(files["llama" if name in _OPENVINO else "chatglm"])
            for name, command in {**ours, **PEERS, **_OPENVINO}.items()
        }
        rounds = take_turns(
            engines,
            ("batches", "--threads", str(num_threads)),
            num_rounds=num_rounds,
            progress=lambda text: progress(f"batches, {text}"),
        )
    decode = {name: rounds.results[name] for name in ours}
    return Batches(
        {name: _by_size(found, "tokens_per_s") for name, found in rounds.results.items()},
        {name: _by_size(found, "decode_tokens_per_s") for name, found in decode.items()},
        rounds.missing,
        rounds.foreign_load,
    )


def _by_size(
    results: Sequence[Mapping[str, Mapping[str, float]]], name: str
) -> dict[int, list[float]]:
    return {size: [result[name][str(size)] for result in results] for size in SIZES}


@contextmanager
def _files(progress: Callable[[str], None]) -> Iterator[dict[Layout, Path]]:
    progress("Making random models")
    with tempfile.TemporaryDirectory() as folder:
        files: dict[Layout, Path] = {}
        for layout in ("chatglm", "llama"):
            files[layout] = Path(folder) / f"{layout}.gguf"
            write_random_model(files[layout], layout)
        yield files
