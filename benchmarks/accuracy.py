"""How far each engine's logits, and its perplexity, are from the same weights in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import child

ALL_TEXTS = "all texts"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """See ``reference.compare``."""

    mean_error: float
    max_error: float
    logit_std: float
    agreement: float
    num_compared: int


@dataclass(frozen=True, slots=True)
class Perplexity:
    """One engine on one text."""

    file: str
    text: str
    engine: str
    num_tokens: int
    reference: float
    """The perplexity in float32 ..."""
    increase: float
    """... and by how much of it the engine's is higher."""
    uncertainty: float
    """Two standard errors of ``increase``, from the tokens' own differences."""
    divergence: float
    """Mean Kullback-Leibler divergence from float32, in nats a token."""
    agreement: float
    """Share of tokens after which the likeliest next one is the same."""


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


def measure_perplexity(
    files: Mapping[str, str],
    *,
    with_peer: bool,
    num_threads: int,
    progress: Callable[[str], None],
) -> Sequence[Perplexity]:
    """Of each of the files, given by name."""
    found: list[Perplexity] = []
    options = ("--with-peer",) if with_peer else ()
    for file, path in files.items():
        progress(f"perplexity: {file}")
        arguments = ("--model", path, "--threads", str(num_threads), *options)
        found += [
            Perplexity(file, text, engine, **values)
            for text, engines in child.run("glimmer_perplexity", *arguments).items()
            for engine, values in engines.items()
        ]
    return found
