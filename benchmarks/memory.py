"""Load time and peak memory of a 512-token prompt and a 64-token answer in a fresh process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import child

ALLOWANCE_BYTES = 80 * 10**6
"""What a process may hold beside the file's size and the KV cache that it uses."""


@dataclass(frozen=True, slots=True)
class Memory:
    file_bytes: int
    kv_bytes: int
    """Of the blocks that were used."""
    weights_bytes: int
    load_s: float
    peak_bytes: int
    stages: Mapping[str, Mapping[str, int]]
    """Resident after each of "imported", "loaded" and "ended"; empty where unknown."""
    peer_load_s: float | None
    peer_peak_bytes: int | None

    @property
    def allowed_bytes(self) -> int:
        return self.file_bytes + self.kv_bytes + ALLOWANCE_BYTES


def measure(
    model: str,
    *,
    with_peer: bool,
    num_threads: int,
    num_rounds: int,
    progress: Callable[[str], None],
) -> Memory:
    arguments = ("memory", "--model", model, "--threads", str(num_threads))

    def rounds(module: str) -> list[dict[str, Any]]:
        progress(f"memory: {module}")
        return [child.run(module, *arguments) for _ in range(num_rounds)]

    ours = rounds("glimmer_llm")
    theirs = rounds("peers.llama_cpp") if with_peer else None
    last = ours[-1]
    return Memory(
        file_bytes=Path(model).stat().st_size,
        kv_bytes=last["kv_bytes"],
        weights_bytes=last["weights_bytes"],
        load_s=_median(ours, "load_s"),
        peak_bytes=round(_median(ours, "peak_bytes")),
        stages={name: last[name] for name in ("imported", "loaded", "ended")},
        peer_load_s=_median(theirs, "load_s") if theirs else None,
        peer_peak_bytes=round(_median(theirs, "peak_bytes")) if theirs else None,
    )


def _median(results: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(statistics.median(result[name] for result in results))
