"""The project's bars, and whether a run clears them."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks import speed
from benchmarks.batches import OURS, SIZES
from benchmarks.machine import MAX_FOREIGN_LOAD
from benchmarks.results import Results
from benchmarks.startup import medians

MIN_SPEED_RATIO = 0.9
MAX_FIRST_TOKEN_S = 1.0
MAX_IMPORT_S = 0.2
MAX_HELP_S = 0.3

_HOLDS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    value: float
    relation: Literal["<", "<=", ">="]
    limit: float
    unit: str
    is_measured: bool = True
    """False where the machine was too busy to say."""

    @property
    def holds(self) -> bool | None:
        return bool(_HOLDS[self.relation](self.value, self.limit)) if self.is_measured else None


def bars(results: Results) -> Iterator[Bar]:
    for measured in results.speeds:
        if (ratios := measured.ratios(speed.DEFAULT)) is not None:
            name = f"{measured.task} to llama.cpp's, {measured.file}"
            quiet = (measured.foreign_load or 0) <= MAX_FOREIGN_LOAD
            yield Bar(name, statistics.median(ratios), ">=", MIN_SPEED_RATIO, "x", quiet)
    if results.startup is not None:
        seconds = medians(results.startup)
        yield Bar("warm start to the first token", seconds["first_token_s"], "<",
                  MAX_FIRST_TOKEN_S, "s")  # fmt: skip
        yield Bar("import glimmer", seconds["import_s"], "<", MAX_IMPORT_S, "s")
        yield Bar("from glimmer import LLM", seconds["import_llm_s"], "<", MAX_IMPORT_S, "s")
        yield Bar("glimmer --help", seconds["help_s"], "<", MAX_HELP_S, "s")
    if (found := results.batches) is not None and (best := found.best_peer()) is not None:
        quiet = (found.foreign_load or 0) <= MAX_FOREIGN_LOAD
        ours = [found.median(OURS, size) for size in SIZES]
        name = f"32 sequences to the best of {best[0]} at any size"
        yield Bar(name, ours[-1] / best[1], ">=", 1.0, "x", quiet)
        name = "32 sequences to the best of our own smaller batches"
        yield Bar(name, ours[-1] / max(ours[:-1]), ">=", 1.0, "x", quiet)
    if (engine := results.engine) is not None:
        quiet = (engine.foreign_load or 0) <= MAX_FOREIGN_LOAD
        yield Bar("second request with the same 2,000 tokens",
                  statistics.median(engine.prefix_gains), ">=", 20, "x sooner", quiet)  # fmt: skip
        yield Bar("engine's share of a step, 32 sequences",
                  100 * statistics.median(engine.overhead), "<", 2, "%", quiet)  # fmt: skip
        yield Bar("with drafts, text that does not repeat",
                  statistics.median(engine.story_gain), ">=", 0.97, "x", quiet)  # fmt: skip
    if (server := results.server) is not None:
        quiet = (server.foreign_load or 0) <= MAX_FOREIGN_LOAD
        yield Bar("server's share of the throughput, 200 clients",
                  100 * statistics.median(server.overheads), "<", 10, "%", quiet)  # fmt: skip
        yield Bar("server's delay of the first token",
                  1000 * statistics.median(server.delays_s), "<=", 15, "ms", quiet)  # fmt: skip
    if (memory := results.memory) is not None:
        yield Bar("peak memory", memory.peak_bytes / 1e6, "<=", memory.allowed_bytes / 1e6, "MB")
