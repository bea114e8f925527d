"""ChatGLM's own int8 and int4 weights: one float16 scale per row.

    scale = max |w| of the row / (2^(bits - 1) - 1)     q = round(w / scale)     w = q * scale

with every step in float16 and halves rounded to even, as quantization.py of the official
repositories computes. int4 pairs the elements 2k (high nibble) and 2k + 1 (low nibble) of a row in
a byte, both in two's complement; -8 does not occur.

A row is the same thing as blocks of q8_0 or q4_0 that all have the row's scale: so the engine runs
these weights as they are, and nothing is quantised a second time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glimmer.errors import InvalidParameterError

Bytes = npt.NDArray[np.uint8]
Int8 = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]
Halfs = npt.NDArray[np.float16]

BLOCK_SIZE = 32
BLOCK_DTYPES = {8: "q8_0", 4: "q4_0"}
"""By bits, the scheme that holds such rows exactly."""
_CHUNK_WEIGHTS = 1 << 22  # worked on at a time


def quantize_rows(weights: Floats, bits: int) -> tuple[Int8, Halfs]:
    """Integers and scales of float32 ``[rows, columns]``.

    int8 ``[rows, columns]`` for 8 bits, int8 ``[rows, columns / 2]`` for 4; float16 ``[rows]``.

    Raises:
        InvalidParameterError: a weight is not finite in float16, or rows of 4 bits are odd.
    """
    rows, columns = weights.shape
    if bits == 4 and columns % 2:
        raise InvalidParameterError(f"4-bit rows hold pairs of weights, but a row has {columns}.")
    data = np.empty((rows, columns * bits // 8), np.int8)
    scales = np.empty(rows, np.float16)
    for part in _row_chunks(rows, columns):
        data[part], scales[part] = _quantize(weights[part], bits)
    return data, scales


def dequantize_rows(data: Int8, scales: Halfs, bits: int) -> Floats:
    """float32 ``[rows, columns]``, each product exact."""
    rows, width = data.shape
    weights = np.empty((rows, width * 8 // bits), np.float32)
    for part in _row_chunks(*weights.shape):
        integers = data[part] if bits == 8 else _unpack(data[part])
        np.multiply(integers, scales[part, None].astype(np.float32), out=weights[part])
    return weights


def rows_to_blocks(
    data: Int8, scales: Halfs, shape: tuple[int, ...], bits: int
) -> tuple[str, Bytes]:
    """The same weights, bit for bit, as blocks: their scheme and uint8 ``[rows, bytes per row]``.

    ``shape`` is that of the weights; the columns must be a multiple of 32.
    """
    rows, columns = shape
    assert columns % BLOCK_SIZE == 0
    data = data.reshape(rows, columns * bits // 8)
    per_row = columns // BLOCK_SIZE
    blocks = np.empty((rows, per_row, 2 + BLOCK_SIZE * bits // 8), np.uint8)
    blocks[:, :, :2] = scales.astype("<f2").view(np.uint8).reshape(rows, 1, 2)
    for part in _row_chunks(rows, columns):
        integers = data[part] if bits == 8 else _unpack(data[part])
        grouped = integers.reshape(-1, per_row, BLOCK_SIZE)
        if bits == 8:
            blocks[part, :, 2:] = grouped.view(np.uint8)
        else:
            nibbles = (grouped + np.int8(8)).view(np.uint8)
            low, high = nibbles[..., : BLOCK_SIZE // 2], nibbles[..., BLOCK_SIZE // 2 :]
            blocks[part, :, 2:] = low | (high << np.uint8(4))
    return BLOCK_DTYPES[bits], blocks.reshape(rows, -1)


def _quantize(weights: Floats, bits: int) -> tuple[Int8, Halfs]:
    with np.errstate(over="ignore"):  # refused below
        halfs = weights.astype(np.float16)
    if not np.isfinite(halfs).all():
        raise InvalidParameterError(
            "The weights hold NaN, infinity or values beyond float16, which this form cannot hold; "
            "use q8_0 or q4_0."
        )
    largest = np.abs(halfs).max(axis=1, initial=0)
    scales = (largest / np.float16(2 ** (bits - 1) - 1)).astype(np.float16)
    divisors = np.where(scales == 0, np.float16(1), scales)
    integers = np.rint(halfs / divisors[:, None]).astype(np.int8)
    return (integers if bits == 8 else _pack(integers)), scales


def _pack(integers: Int8) -> Int8:
    bits = integers.view(np.uint8)
    return ((bits[:, ::2] << np.uint8(4)) | (bits[:, 1::2] & np.uint8(15))).view(np.int8)


def _unpack(data: Int8) -> Int8:
    integers = np.empty((len(data), data.shape[1] * 2), np.int8)
    # Shifts of int8 keep the sign.
    integers[:, ::2] = data >> 4
    integers[:, 1::2] = (data << 4) >> 4
    return integers


def _row_chunks(rows: int, columns: int) -> list[slice]:
    step = max(1, _CHUNK_WEIGHTS // max(columns, 1))
    return [slice(start, start + step) for start in range(0, rows, step)]
