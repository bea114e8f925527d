"""What the server costs beyond its engine: throughput of many clients, first token of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import child
from benchmarks.machine import ForeignLoad


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """One value per round; 200 streams of 64 tokens, 32 at a time."""

    engine_tokens_per_s: Sequence[float]
    server_tokens_per_s: Sequence[float]
    engine_first_token_s: Sequence[float]
    """Of one client alone."""
    server_first_token_s: Sequence[float]
    foreign_load: float | None

    @property
    def overheads(self) -> list[float]:
        """Shares of the engine's throughput that the server costs."""
        pairs = zip(self.engine_tokens_per_s, self.server_tokens_per_s, strict=True)
        return [1 - server / engine for engine, server in pairs]

    @property
    def delays_s(self) -> list[float]:
        pairs = zip(self.engine_first_token_s, self.server_first_token_s, strict=True)
        return [server - engine for engine, server in pairs]


def measure(
    model: str, *, num_threads: int, num_rounds: int, progress: Callable[[str], None]
) -> ServerFigures:
    load, rounds = ForeignLoad(), []
    for number in range(num_rounds):
        progress(f"server, round {number + 1} of {num_rounds}")
        order = ["--server-first"] if number % 2 else []
        arguments = ("--model", model, "--threads", str(num_threads), *order)
        rounds.append(child.run("glimmer_server", *arguments))
    return ServerFigures(
        *(
            [found[what][figure] for found in rounds]
            for figure in ("tokens_per_s", "first_token_s")
            for what in ("engine", "server")
        ),
        foreign_load=load.share(),
    )
