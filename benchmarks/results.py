"""Everything that one run measured; None or empty where it was not asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.accuracy import Accuracy, Perplexity
from benchmarks.batches import Batches
from benchmarks.engine_figures import EngineFigures
from benchmarks.machine import Machine, Peer
from benchmarks.memory import Memory
from benchmarks.server_figures import ServerFigures
from benchmarks.speed import Speed
from benchmarks.startup import StartUp


@dataclass(frozen=True, slots=True)
class Results:
    machine: Machine
    peer: Peer
    model: str
    speeds: Sequence[Speed]
    startup: StartUp | None
    memory: Memory | None
    accuracy: Mapping[str, Accuracy]
    perplexity: Sequence[Perplexity]
    batches: Batches | None
    engine: EngineFigures | None
    server: ServerFigures | None
