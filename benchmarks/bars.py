"""The project's bars, and whether a run clears them."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks import speed
from benchmarks.accuracy import ALL_TEXTS, Perplexity
from benchmarks.batches import OURS, SIZES
from benchmarks.engine_figures import COPIES
from benchmarks.machine import is_quiet
from benchmarks.results import Results
from benchmarks.startup import medians

MIN_SPEED_RATIO = 0.9
MAX_FIRST_TOKEN_S = 1.0
MAX_IMPORT_S = 0.2
MAX_HELP_S = 0.3
MAX_PERPLEXITY_INCREASE = 0.005

_HOLDS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    value: float
    relation: Literal["<", "<=", ">="]
    limit: float | None
    """None where no bar was set, and the value is for information."""
    unit: str
    is_measured: bool = True
    """False where the machine was too busy to say."""

    @property
    def holds(self) -> bool | None:
        if self.limit is None or not self.is_measured:
            return None
        return bool(_HOLDS[self.relation](self.value, self.limit))

    @property
    def measured(self) -> str:
        return f"{self.value:.{self._digits}f} {self.unit}"

    @property
    def asked(self) -> str:
        if self.limit is None:
            return "-"
        return f"{self.relation} {self.limit:.{self._digits}f} {self.unit}"

    @property
    def _digits(self) -> int:
        return 1 if self.unit == "MB" else 2


def bars(results: Results) -> Iterator[Bar]:
    for measured in results.speeds:
        if (ratios := measured.ratios(speed.DEFAULT)) is not None:
            name = f"{measured.task} to llama.cpp's, {measured.file}"
            quiet = is_quiet(measured.foreign_load)
            yield Bar(name, statistics.median(ratios), ">=", MIN_SPEED_RATIO, "x", quiet)
    if results.startup is not None:
        seconds = medians(results.startup)
        yield Bar("warm start to the first token", seconds["first_token_s"], "<",
                  MAX_FIRST_TOKEN_S, "s")  # fmt: skip
        yield Bar("import glimmer", seconds["import_s"], "<", MAX_IMPORT_S, "s")
        yield Bar("from glimmer import LLM", seconds["import_llm_s"], "<", MAX_IMPORT_S, "s")
        yield Bar("glimmer --help", seconds["help_s"], "<", MAX_HELP_S, "s")
    yield from perplexity_bars(results.perplexity)
    if (found := results.batches) is not None:
        quiet = is_quiet(found.foreign_load)
        if (best := found.best_peer()) is not None:
            name = f"32 sequences to the best of {best} at any size"
            ratio = found.median(OURS, SIZES[-1]) / found.best(best)
            yield Bar(name, ratio, ">=", 1.0, "x", quiet)
        name = "each batch size to the best of smaller ones"
        yield Bar(name, found.smallest_rise(OURS), ">=", 1.0, "x", quiet)
    if (engine := results.engine) is not None:
        quiet = is_quiet(engine.foreign_load)
        yield Bar("second request with the same 2,000 tokens",
                  statistics.median(engine.prefix_gains), ">=", 20, "x sooner", quiet)  # fmt: skip
        yield Bar("engine's share of a step, 32 sequences",
                  100 * statistics.median(engine.overhead), "<", 2, "%", quiet)  # fmt: skip
        for work, gains in engine.draft_gains.items():
            limit = 2 if work in COPIES else 0.97
            yield Bar(f"with drafts: {work}", statistics.median(gains), ">=", limit, "x", quiet)
    if (server := results.server) is not None:
        quiet = is_quiet(server.foreign_load)
        yield Bar("server's share of the throughput, 200 clients",
                  100 * statistics.median(server.overheads), "<", 10, "%", quiet)  # fmt: skip
        yield Bar("server's delay of the first token",
                  1000 * statistics.median(server.delays_s), "<=", 15, "ms", quiet)  # fmt: skip
    if (memory := results.memory) is not None:
        yield Bar("peak memory", memory.peak_bytes / 1e6, "<=", memory.allowed_bytes / 1e6, "MB")


def perplexity_bars(found: Sequence[Perplexity]) -> Iterator[Bar]:
    """Of int8 activations on all texts together, by file."""
    for p in found:
        if p.engine == "Glimmer, int8" and p.text == ALL_TEXTS:
            yield Bar(f"perplexity of int8 activations over float32's, {p.file}",
                      100 * p.increase, "<=", 100 * MAX_PERPLEXITY_INCREASE, "%")  # fmt: skip
