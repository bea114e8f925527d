"""The packings that Glimmer computes with, each as its plain definition in numpy.

A scheme cuts every row of a weight (its last dimension) into blocks of ``block_size`` weights and
stores a block in ``block_bytes`` bytes, little endian. The layouts of q8_0, q4_0 and q4_1, and the
rounding of ``quantize``, are GGML's (block_q8_0 ... in ggml-common.h, quantize_row_*_ref in
ggml-quants.c), so that files and results can be compared bit for bit:

    q8_0   float16 d              int8 q[32]    w = d * q
    q4_0   float16 d              uint8 q[16]   w = d * (nibble - 8)
    q4_1   float16 d, float16 m   uint8 q[16]   w = d * nibble + m

Low nibbles are weights 0..15 of a block, high nibbles weights 16..31.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from glimmer.errors import InvalidParameterError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """One packing.

    ``dequantize`` maps uint8 ``[num_blocks, block_bytes]`` to float32 ``[num_blocks, block_size]``
    and ``quantize`` is the way back; both work on whole blocks and know no shapes.
    """

    name: str
    block_size: int
    """Weights per block."""
    block_bytes: int
    dequantize: Callable[[Bytes], Floats] = field(repr=False)
    quantize: Callable[[Floats], Bytes] = field(repr=False)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, num_columns: int) -> int:
        """Bytes of one row of ``num_columns`` weights.

        Raises InvalidParameterError if they do not fill whole blocks.
        """
        if num_columns % self.block_size:
            raise InvalidParameterError(
                f"{self.name} packs rows in blocks of {self.block_size} weights; a row of "
                f"{num_columns} is not a multiple of that"
            )
        return num_columns // self.block_size * self.block_bytes

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a weight of ``shape``, row-major; a row is the last dimension."""
        assert shape, "a weight has at least one dimension"
        return math.prod(shape[:-1]) * self.row_bytes(shape[-1])


def dequantize(name: str, data: Bytes, shape: tuple[int, ...]) -> Floats:
    """Weights of ``shape``, float32, from uint8 ``[size_bytes]`` as scheme ``name`` stores them."""
    scheme = SCHEMES[name]
    assert data.dtype == np.uint8
    assert data.size == scheme.size_bytes(shape), f"{data.size} bytes for {name} {shape}"
    return scheme.dequantize(data.reshape(-1, scheme.block_bytes)).reshape(shape)


def quantize(name: str, weights: Floats) -> Bytes:
    """Bytes, uint8 ``[size_bytes]``, of float32 ``weights`` of any shape under scheme ``name``.

    Raises InvalidParameterError if rows do not fill whole blocks, or if a block of an integer
    scheme holds a value that is not finite or too large for its float16 scale.
    """
    scheme = SCHEMES[name]
    assert weights.dtype == np.float32
    scheme.row_bytes(weights.shape[-1])
    return scheme.quantize(weights.reshape(-1, scheme.block_size)).reshape(-1)


def _decode_float32(blocks: Bytes) -> Floats:
    return blocks.view("<f4").astype(np.float32)


def _encode_float32(weights: Floats) -> Bytes:
    return _bytes_of(weights.astype("<f4"))


def _decode_float16(blocks: Bytes) -> Floats:
    return blocks.view("<f2").astype(np.float32)


def _encode_float16(weights: Floats) -> Bytes:
    with np.errstate(over="ignore"):  # beyond 65504 a float16 is infinite, by definition
        return _bytes_of(weights.astype("<f2"))


def _decode_bfloat16(blocks: Bytes) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _encode_bfloat16(weights: Floats) -> Bytes:
    bits = np.ascontiguousarray(weights).view(np.uint32)
    nearest_even = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding up the payload of a NaN could turn it into an infinity: keep it and set a quiet bit.
    quiet_nan = (bits >> 16) | 0x40
    return _bytes_of(np.where(np.isnan(weights), quiet_nan, nearest_even).astype("<u2"))


def _decode_q8_0(blocks: Bytes) -> Floats:
    return _decode_float16(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _encode_q8_0(weights: Floats) -> Bytes:
    scale = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    header = _encode_scale(scale, "q8_0")
    quants = _round_half_away(weights * _inverse(scale)).astype(np.int8)
    return np.hstack([header, quants.view(np.uint8)])


def _decode_q4_0(blocks: Bytes) -> Floats:
    return _decode_float16(blocks[:, :2]) * (_unpack_nibbles(blocks[:, 2:]) - np.float32(8))


def _encode_q4_0(weights: Floats) -> Bytes:
    # The weight of largest magnitude gets nibble 0, the only one with magnitude 8: so the scale
    # carries its sign, negated. Adding zero makes the scale of a zero block -0, as in GGML.
    largest = np.abs(weights).argmax(axis=1)[:, None]
    scale = (np.take_along_axis(weights, largest, axis=1) + np.float32(0)) / np.float32(-8)
    header = _encode_scale(scale, "q4_0")
    nibbles = np.minimum(weights * _inverse(scale) + np.float32(8.5), 15).astype(np.uint8)
    return np.hstack([header, _pack_nibbles(nibbles)])


def _decode_q4_1(blocks: Bytes) -> Floats:
    scale, minimum = _decode_float16(blocks[:, :2]), _decode_float16(blocks[:, 2:4])
    return scale * _unpack_nibbles(blocks[:, 4:]) + minimum


def _encode_q4_1(weights: Floats) -> Bytes:
    minimum = weights.min(axis=1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):  # such a scale is refused below
        scale = (weights.max(axis=1, keepdims=True) - minimum) / np.float32(15)
    header = [_encode_scale(scale, "q4_1"), _encode_scale(minimum, "q4_1")]
    steps = (weights - minimum) * _inverse(scale)
    nibbles = np.minimum(steps + np.float32(0.5), 15).astype(np.uint8)
    return np.hstack([*header, _pack_nibbles(nibbles)])


def _inverse(scale: Floats) -> Floats:
    """1 / scale; 0 where the block is zero or so small that its float16 scale is zero anyway."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _encode_scale(scale: Floats, name: str) -> Bytes:
    stored = _encode_float16(scale)
    if not np.isfinite(stored.view("<f2")).all():
        raise InvalidParameterError(
            f"weights cannot be packed as {name}: they hold NaN, infinity or values beyond the "
            f"range of a float16 scale; use bfloat16 or float32"
        )
    return stored


def _round_half_away(values: Floats) -> Floats:
    # C's roundf. Not rint, which goes to even; nor trunc(x + 0.5), which is wrong just below 0.5.
    whole = np.trunc(values)
    return whole + np.copysign(np.abs(values - whole) >= np.float32(0.5), values)


def _unpack_nibbles(packed: Bytes) -> Floats:
    return np.hstack([packed & 0x0F, packed >> 4]).astype(np.float32)


def _pack_nibbles(nibbles: Bytes) -> Bytes:
    low, high = np.hsplit(nibbles, 2)
    return np.bitwise_or(low, np.left_shift(high, 4, dtype=np.uint8))


def _bytes_of(values: npt.NDArray[np.generic]) -> Bytes:
    """uint8 ``[rows, columns * itemsize]`` of ``[rows, columns]``."""
    return np.ascontiguousarray(values).view(np.uint8)


SCHEMES: Mapping[str, QuantScheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            QuantScheme("float32", 1, 4, _decode_float32, _encode_float32),
            QuantScheme("float16", 1, 2, _decode_float16, _encode_float16),
            QuantScheme("bfloat16", 1, 2, _decode_bfloat16, _encode_bfloat16),
            QuantScheme("q8_0", 32, 34, _decode_q8_0, _encode_q8_0),
            QuantScheme("q4_0", 32, 18, _decode_q4_0, _encode_q4_0),
            QuantScheme("q4_1", 32, 20, _decode_q4_1, _encode_q4_1),
        )
    }
)
"""Every packing by its name."""
