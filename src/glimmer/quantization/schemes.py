"""The packings that Glimmer computes with, each as its plain definition in numpy.

A scheme cuts every row of a weight (its last dimension) into blocks of ``block_size`` weights and
stores a block in ``block_bytes`` bytes, little endian. The layouts of q8_0, q4_0 and q4_1, and the
rounding of ``quantize``, are GGML's (block_q8_0 ... in ggml-common.h, quantize_row_*_ref in
ggml-quants.c), so that files and results can be compared bit for bit:

    q8_0   float16 d              int8 q[32]                 w = d * q
    q4_0   float16 d              uint8 q[16]                w = d * (nibble - 8)
    q4_1   float16 d, float16 m   uint8 q[16]                w = d * nibble + m
    q5_0   float16 d              uint32 fifth, uint8 q[16]  w = d * (five bits - 16)
    q5_1   float16 d, float16 m   uint32 fifth, uint8 q[16]  w = d * five bits + m

Low nibbles are weights 0..15 of a block, high nibbles weights 16..31; bit i of ``fifth`` belongs to
weight i. Blocks of 256 weights are groups of 32 with 6-bit scales s and minimums m in 12 bytes
(q4_k, q5_k), or groups of 16 with int8 scales s (q6_k):

    q4_k   float16 d, float16 dmin, s and m, uint8 q[128]                w = d * s * q - dmin * m
    q5_k   float16 d, float16 dmin, s and m, uint8 fifth[32], q[128]     w = d * s * q - dmin * m
    q6_k   uint8 q[128], uint8 high[64], int8 s[16], float16 d           w = d * s * (q - 32)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NoReturn

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
    is_written: bool = True
    """Whether ``quantize`` does more than refuse."""

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


def _decode_q5_0(blocks: Bytes) -> Floats:
    return _decode_float16(blocks[:, :2]) * (_five_bits(blocks[:, 2:]) - np.float32(16))


def _decode_q5_1(blocks: Bytes) -> Floats:
    scale, minimum = _decode_float16(blocks[:, :2]), _decode_float16(blocks[:, 2:4])
    return scale * _five_bits(blocks[:, 4:]) + minimum


def _five_bits(packed: Bytes) -> Floats:
    fifths = np.unpackbits(packed[:, :4], axis=1, bitorder="little")
    return _unpack_nibbles(packed[:, 4:]) + np.float32(16) * fifths


def _decode_q4_k(blocks: Bytes) -> Floats:
    return _scaled_groups(blocks, _group_nibbles(blocks[:, 16:]))


def _decode_q5_k(blocks: Bytes) -> Floats:
    # Bit g of byte i is the fifth bit of weight i of group g.
    fifths = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little").transpose(0, 2, 1)
    return _scaled_groups(blocks, _group_nibbles(blocks[:, 48:]) | (fifths << np.uint8(4)))


def _group_nibbles(packed: Bytes) -> Bytes:
    """uint8 ``[blocks, 8, 32]``: low nibbles of 32 bytes are a group, the high ones the next."""
    pairs = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([pairs & 0x0F, pairs >> 4], axis=2).reshape(-1, 8, 32)


def _scaled_groups(blocks: Bytes, quants: Bytes) -> Floats:
    scales, minimums = _split_scales(blocks[:, 4:16])
    d, dmin = _decode_float16(blocks[:, :2]), _decode_float16(blocks[:, 2:4])
    steps = (d * scales)[..., None] * quants.astype(np.float32)
    weights: Floats = steps - (dmin * minimums)[..., None]
    return weights.reshape(len(blocks), 256)


def _split_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """6-bit scales and minimums ``[blocks, 8]`` of 12 bytes."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack([first & 63, (rest & 15) | ((first >> 6) << 4)])
    minimums = np.hstack([second & 63, (rest >> 4) | ((second >> 6) << 4)])
    return scales.astype(np.float32), minimums.astype(np.float32)


def _join_scales(scales: Bytes, minimums: Bytes) -> Bytes:
    """The inverse of ``_split_scales``."""
    low_s, high_s, low_m, high_m = scales[:, :4], scales[:, 4:], minimums[:, :4], minimums[:, 4:]
    first, second = low_s | ((high_s >> 4) << 6), low_m | ((high_m >> 4) << 6)
    return np.hstack([first, second, (high_s & 15) | ((high_m & 15) << 4)])


def _decode_q6_k(blocks: Bytes) -> Floats:
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    nibbles = np.concatenate([low & 0x0F, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(4, 1)
    quants = (nibbles | (((high >> shifts) & 3) << 4)).astype(np.float32) - np.float32(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    steps = _decode_float16(blocks[:, 208:]) * scales
    weights: Floats = quants.reshape(-1, 16, 16) * steps[..., None]
    return weights.reshape(len(blocks), 256)


def _encode_q4_k(weights: Floats) -> Bytes:
    """As quantize_row_q4_K_ref: the best scale and minimum of each group, then both in 6 bits."""
    groups = weights.reshape(-1, 32)
    if not np.isfinite(groups).all():
        _refuse_range("q4_k")
    spread = np.sqrt((groups * groups).sum(axis=1, keepdims=True) / np.float32(32))
    scales, minimums = (
        part.reshape(-1, 8) for part in _fit_groups(groups, spread + np.abs(groups), levels=15)
    )
    largest = scales.max(axis=1, keepdims=True), minimums.max(axis=1, keepdims=True)
    header = [_encode_scale(part / np.float32(63), "q4_k") for part in largest]
    whole = [
        np.minimum(np.rint(part * (np.float32(63) * _inverse(most))), 63).astype(np.uint8)
        for part, most in zip((scales, minimums), largest, strict=True)
    ]
    step = _decode_float16(header[0]) * whole[0].astype(np.float32)
    low = _decode_float16(header[1]) * whole[1].astype(np.float32)
    shifted = weights.reshape(-1, 8, 32) + low[..., None]
    quants = np.clip(np.rint(shifted * _inverse(step)[..., None]), 0, 15).astype(np.uint8)
    pairs = quants.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | (pairs[:, :, 1] << np.uint8(4))).reshape(-1, 128)
    return np.hstack([*header, _join_scales(*whole), nibbles])


def _fit_groups(groups: Floats, weight: Floats, levels: int) -> tuple[Floats, Floats]:
    """Scale and minimum (negated, at least 0) of each group that make the weighted error least.

    make_qkx2_quants: 21 roundings are tried, and for each the scale and minimum that fit it best.
    """
    low = np.minimum(groups.min(axis=1), np.float32(0))
    spread = groups.max(axis=1) - low
    sum_w, sum_x = weight.sum(axis=1), (weight * groups).sum(axis=1)

    def rounded(steps: float) -> Floats:
        inverse = np.float32(steps) * _inverse(spread)
        quants: Floats = np.clip(np.rint((groups - low[:, None]) * inverse[:, None]), 0, levels)
        return quants

    def error(scale: Floats, minimum: Floats, quants: Floats) -> Floats:
        difference = scale[:, None] * quants + minimum[:, None] - groups
        total: Floats = (weight * difference * difference).sum(axis=1)
        return total

    scale, minimum = spread / np.float32(levels), low.copy()
    least = error(scale, minimum, rounded(levels))
    for attempt in range(21):
        quants = rounded(levels - 1 + 0.1 * attempt)
        weighted = weight * quants
        sum_q, sum_q2 = weighted.sum(axis=1), (weighted * quants).sum(axis=1)
        sum_xq = (weighted * groups).sum(axis=1)
        determinant = sum_w * sum_q2 - sum_q * sum_q
        inverse = _inverse(determinant)
        fitted = (sum_w * sum_xq - sum_x * sum_q) * inverse
        start = (sum_q2 * sum_x - sum_q * sum_xq) * inverse
        above = start > 0  # a minimum is stored negated, without a sign
        fitted = np.where(above, sum_xq * _inverse(sum_q2), fitted)
        start = np.where(above, np.float32(0), start)
        found = error(fitted, start, quants)
        better = (determinant > 0) & (found < least)
        least = np.where(better, found, least)
        scale, minimum = np.where(better, fitted, scale), np.where(better, start, minimum)
    fitted_scale: Floats = np.where(spread > 0, scale, np.float32(0))
    return fitted_scale, -minimum


def _read_only(name: str) -> Callable[[Floats], Bytes]:
    def refuse(_weights: Floats) -> Bytes:
        raise InvalidParameterError(
            f"weights cannot be packed as {name}: it is read, not written; use q4_k, q8_0 or q4_0"
        )

    return refuse


def _inverse(scale: Floats) -> Floats:
    """1 / scale; 0 where the block is zero or so small that its float16 scale is zero anyway."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _encode_scale(scale: Floats, name: str) -> Bytes:
    stored = _encode_float16(scale)
    if not np.isfinite(stored.view("<f2")).all():
        _refuse_range(name)
    return stored


def _refuse_range(name: str) -> NoReturn:
    raise InvalidParameterError(
        f"weights cannot be packed as {name}: they hold NaN, infinity or values beyond the "
        "range of a float16 scale; use bfloat16 or float32"
    )


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
            QuantScheme("q5_0", 32, 22, _decode_q5_0, _read_only("q5_0"), False),
            QuantScheme("q5_1", 32, 24, _decode_q5_1, _read_only("q5_1"), False),
            QuantScheme("q4_k", 256, 144, _decode_q4_k, _encode_q4_k),
            QuantScheme("q5_k", 256, 176, _decode_q5_k, _read_only("q5_k"), False),
            QuantScheme("q6_k", 256, 210, _decode_q6_k, _read_only("q6_k"), False),
        )
    }
)
"""Every packing by its name."""
