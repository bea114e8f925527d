"""Perplexity of one network in float32 and with rounded activations, window by window, all in one
process: the distributions of a text would fill a disk. Runs in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

import glimmer
from benchmarks import child
from benchmarks.accuracy import ALL_TEXTS
from benchmarks.reference import Float32Array
from benchmarks.texts import texts

WINDOW_TOKENS = 512
"""Each window is read from an empty cache, and every token but its first is predicted."""

Logits = Callable[[list[int]], Float32Array]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distance:
    """One engine from the reference; a value for each token that was predicted."""

    reference_loss: Float64Array
    """Nats."""
    loss: Float64Array
    divergence: Float64Array
    agrees: npt.NDArray[np.bool_]

    def summary(self) -> dict[str, float]:
        """See ``accuracy.Perplexity``."""
        differences = self.loss - self.reference_loss
        return {
            "num_tokens": len(differences),
            "reference": float(np.exp(self.reference_loss.mean())),
            "increase": float(np.expm1(differences.mean())),
            "uncertainty": 2 * float(differences.std() / np.sqrt(len(differences))),
            "divergence": float(self.divergence.mean()),
            "agreement": float(self.agrees.mean()),
        }


def compare(
    token_ids: list[int], reference: Logits, engines: Mapping[str, Logits]
) -> dict[str, Distance]:
    """How far each engine is from the reference on one text, of whole windows."""
    windows: dict[str, list[Distance]] = {name: [] for name in engines}
    for start in range(0, len(token_ids) - WINDOW_TOKENS, WINDOW_TOKENS):
        ids = token_ids[start : start + WINDOW_TOKENS]
        targets = np.array(token_ids[start + 1 : start + WINDOW_TOKENS + 1])
        expected = _log_probabilities(reference(ids))
        probabilities = np.exp(expected)
        for name, logits in engines.items():
            found = _log_probabilities(logits(ids))
            windows[name].append(
                Distance(
                    _loss(expected, targets),
                    _loss(found, targets),
                    np.einsum("tv,tv->t", probabilities, expected - found).astype(np.float64),
                    found.argmax(axis=1) == expected.argmax(axis=1),
                )
            )
    return {name: join(parts) for name, parts in windows.items()}


def join(parts: Sequence[Distance]) -> Distance:
    return Distance(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Distance)
        )
    )


def _log_probabilities(logits: Float32Array) -> Float32Array:
    shifted: Float32Array = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    shifted -= np.log(total)
    return shifted


def _loss(log_probabilities: Float32Array, targets: npt.NDArray[np.int64]) -> Float64Array:
    return -log_probabilities[np.arange(len(targets)), targets].astype(np.float64)


def main() -> None:
    parser = child.parser(__doc__)
    parser.add_argument("--with-peer", action="store_true", help="llama.cpp too")
    args = parser.parse_args()
    reference = glimmer.load(args.model, weights="float32", num_threads=args.threads)
    engines: dict[str, Logits] = {
        "Glimmer, int16": glimmer.load(
            args.model, num_threads=args.threads, activations="int16"
        ).logits,
        "Glimmer, int8": glimmer.load(
            args.model, num_threads=args.threads, activations="int8"
        ).logits,
    }
    if args.with_peer:
        import llama_cpp

        from benchmarks.peers.llama_cpp import LlamaCppEngine, silence

        log = silence(llama_cpp)
        engines["llama.cpp"] = LlamaCppEngine(llama_cpp, Path(args.model), args.threads).logits
    by_text = {
        text: compare(reference.tokenizer.encode(content), reference.logits, engines)
        for text, content in texts().items()
    }
    by_text[ALL_TEXTS] = {
        engine: join([distances[engine] for distances in by_text.values()]) for engine in engines
    }
    result = {
        text: {engine: distance.summary() for engine, distance in distances.items()}
        for text, distances in by_text.items()
    }
    if args.with_peer:
        del log
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
