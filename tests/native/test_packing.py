"""The bytes of the packed form, which files hold: they change with their version, or not at all."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from glimmer.native import PACKED_LAYOUT, NativeModel
from glimmer.quantization import SCHEMES
from tests.native.test_block_types import network

ROWS, COLUMNS = 77, 256
DIGESTS = {
    "float32": "9dbb2c6e5fd10c32",
    "float16": "db288ff816afacee",
    "bfloat16": "db288ff816afacee",
    "q8_0": "bf6b466a171f41da",
    "q4_0": "9ac00d2ab2d99466",
    "q4_1": "5c764780bffdffc7",
    "q5_0": "8f473464ae931a08",
    "q5_1": "b9f9af3dc872491b",
    "q4_k": "2bada58430666c29",
    "q5_k": "34a140216ae3ac4d",
    "q6_k": "a2281e3d899fbaf0",
}
"""Of layout 1: the first 16 digits of SHA-256."""


@pytest.mark.parametrize("dtype", list(SCHEMES))
def test_packed_bytes_are_those_of_the_version(dtype: str) -> None:
    size = SCHEMES[dtype].size_bytes((ROWS, COLUMNS))
    # Bytes that no library's random numbers make, and no scale that is not a number.
    stored = (np.arange(size, dtype=np.uint64) * 2654435761 >> 13).astype(np.uint8) & 0xBF
    native = NativeModel(network(vocab_size=ROWS, hidden_size=COLUMNS), 2)
    packed = native.pack("embedding.weight", dtype, (ROWS, COLUMNS), stored)
    assert native.kept("embedding.weight", dtype, (ROWS, COLUMNS)) == (dtype, len(packed))
    assert PACKED_LAYOUT == 1, "write down the digests of the new layout"
    assert hashlib.sha256(packed.tobytes()).hexdigest()[:16] == DIGESTS[dtype], (
        "the packed form has changed: count kPackedLayout (csrc/core/packing.h) up"
    )
