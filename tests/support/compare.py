"""The engine beside the reference.

Rounded values have edges: an input that lies between two integers, or a key between two float16,
falls on either side by the last bit of a float32. So where anything is rounded, a few logits differ
by much more than the rest, and both the largest and the median difference are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from glimmer.native import instruction_sets
from tests.support.reference import forward
from tests.support.tiny import KVDType, TinyModel, random_text, run

ISAS = instruction_sets()
LENGTHS = (1, 2, 31, 32, 33, 70)  # around one block of the cache, and every remainder of a tile
KV_DTYPES: tuple[KVDType, ...] = ("float32", "float16", "int8")


def check_batch(
    model: TinyModel,
    activations: str = "int8",
    lengths: Sequence[int] = LENGTHS,
    chunk: int | None = None,
    kv_dtypes: Sequence[KVDType] = KV_DTYPES,
) -> None:
    """Runs sequences of these ``lengths`` in one batch, under every instruction set."""
    rng = np.random.default_rng(0)
    sequences = [random_text(model.architecture, n, rng) for n in lengths]
    engines = {isa: model.native(isa=isa, activations=activations) for isa in ISAS}
    input_bits = model.input_bits(activations)
    for kv_dtype in kv_dtypes:
        expected = [
            forward(model.architecture, model.weights, s, kv_dtype=kv_dtype, input_bits=input_bits)
            for s in sequences
        ]
        largest, median = allowed_differences(input_bits, kv_dtype)
        logits = {
            isa: np.concatenate(run(engine, sequences, chunk=chunk, kv_dtype=kv_dtype))
            for isa, engine in engines.items()
        }
        difference = np.abs(logits["scalar"] - np.concatenate(expected))
        assert difference.max() <= largest
        assert np.median(difference) <= median
        for isa in ISAS:
            np.testing.assert_array_equal(logits[isa], logits["scalar"], err_msg=isa)


def allowed_differences(input_bits: Mapping[str, int], kv_dtype: KVDType) -> tuple[float, float]:
    """Largest and median, where logits have a standard deviation of 1."""
    if 8 in input_bits.values():
        return 0.2, 2e-2
    if kv_dtype == "int8":
        return 0.1, 2e-3
    if 16 in input_bits.values():
        return 5e-3, 3e-4
    return (4e-3, 1e-4) if kv_dtype == "float16" else (5e-5, 5e-6)
