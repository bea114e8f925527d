"""How far each engine's logits are from the same weights computed in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import child


@dataclass(frozen=True, slots=True)
class Accuracy:
    """See ``reference.compare``."""

    mean_error: float
    max_error: float
    logit_std: float
    agreement: float
    num_compared: int


def measure(
    model: str, *, with_peer: bool, num_threads: int, progress: Callable[[str], None]
) -> Mapping[str, Accuracy]:
    engines: dict[str, tuple[str, ...]] = {
        "Glimmer, int16": ("glimmer_native", "--activations", "int16"),
        "Glimmer, int8": ("glimmer_native", "--activations", "int8"),
    }
    if with_peer:
        engines["llama.cpp"] = ("peers.llama_cpp",)
    with tempfile.TemporaryDirectory() as folder:
        reference = str(Path(folder) / "reference.npz")
        arguments = ("--model", model, "--threads", str(num_threads), "--reference", reference)
        progress("accuracy: float32")
        child.run("glimmer_native", "reference", *arguments)
        results = {}
        for name, (module, *options) in engines.items():
            progress(f"accuracy: {name}")
            results[name] = Accuracy(**child.run(module, "accuracy", *arguments, *options))
        return results
