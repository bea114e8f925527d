"""Many sequences at once: every engine in a fresh process, in turn, for several rounds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import child, workload
from benchmarks.machine import ForeignLoad
from benchmarks.random_models import Layout, write_random_model

SIZES = workload.BATCH_SIZES
OURS = "Glimmer LLM, int8"
"""The peers multiply int4 weights with int8 inputs, so this is like with like."""
# (module, layout of its file, options)
_ENGINES: Mapping[str, tuple[str, Layout, tuple[str, ...]]] = {
    OURS: ("glimmer_llm", "chatglm", ("--activations", "int8")),
    "Glimmer LLM, default": ("glimmer_llm", "chatglm", ()),
    "llama.cpp": ("peers.llama_cpp", "chatglm", ()),
    "ik_llama.cpp": ("peers.ik_llama_cpp", "chatglm", ()),
    "OpenVINO GenAI, AVX2": ("peers.openvino_genai", "llama", ("--avx2",)),
    "OpenVINO GenAI": ("peers.openvino_genai", "llama", ()),
}


@dataclass(frozen=True, slots=True)
class Batches:
    """Generated tokens per second, prompts included in the time; one value per round."""

    tokens_per_s: Mapping[str, Mapping[int, Sequence[float]]]
    """By engine and number of sequences."""
    missing: Mapping[str, str]
    """Engines that could not be measured, and why."""
    foreign_load: float | None

    def median(self, engine: str, size: int) -> float:
        return statistics.median(self.tokens_per_s[engine][size])

    def best_peer(self) -> tuple[str, float] | None:
        """The fastest engine of others for AVX2 at any size."""
        medians = {
            engine: max(self.median(engine, size) for size in SIZES)
            for engine in self.tokens_per_s
            if not engine.startswith("Glimmer") and engine != "OpenVINO GenAI"
        }
        return max(medians.items(), key=lambda item: item[1]) if medians else None


def measure(*, num_threads: int, num_rounds: int, progress: Callable[[str], None]) -> Batches:
    tokens_per_s: dict[str, dict[int, list[float]]] = {}
    missing: dict[str, str] = {}
    load = ForeignLoad()
    with _files(progress) as files:
        for round_number in range(num_rounds):
            order = list(_ENGINES.items())[:: -1 if round_number % 2 else 1]
            for engine, (module, layout, options) in order:
                if engine in missing:
                    continue
                progress(f"batches, round {round_number + 1} of {num_rounds}: {engine}")
                model = ("--model", str(files[layout]), "--threads", str(num_threads))
                try:
                    result = child.run(module, "batches", *model, *options)
                except child.ChildFailedError as error:
                    missing[engine] = str(error)
                    tokens_per_s.pop(engine, None)
                    continue
                for size in SIZES:
                    values = tokens_per_s.setdefault(engine, {}).setdefault(size, [])
                    values.append(result["tokens_per_s"][str(size)])
    return Batches(tokens_per_s, missing, load.share())


@contextmanager
def _files(progress: Callable[[str], None]) -> Iterator[dict[Layout, Path]]:
    progress("Making random models")
    with tempfile.TemporaryDirectory() as folder:
        files: dict[Layout, Path] = {}
        for layout in ("chatglm", "llama"):
            files[layout] = Path(folder) / f"{layout}.gguf"
            write_random_model(files[layout], layout)
        yield files
