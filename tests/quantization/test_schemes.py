from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glimmer.checkpoints import GGUFCheckpoint
from glimmer.errors import InvalidParameterError
from glimmer.quantization import SCHEMES, dequantize, quantize
from tests.support.demo_model import demo_gguf

BLOCK_SCHEMES = ("q8_0", "q4_0", "q4_1")
WRITTEN = ("float32", "float16", "bfloat16", *BLOCK_SCHEMES)
"""Of any rows that fill blocks of 32; q4_k has tests of its own."""
Floats = npt.NDArray[np.float32]
F = np.float32


def gaussian(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_schemes_and_their_sizes() -> None:
    assert {name: scheme.bits_per_weight for name, scheme in SCHEMES.items()} == {
        "float32": 32,
        "float16": 16,
        "bfloat16": 16,
        "q8_0": 8.5,
        "q4_0": 4.5,
        "q4_1": 5,
        "q5_0": 5.5,
        "q5_1": 6,
        "q4_k": 4.5,
        "q5_k": 5.5,
        "q6_k": 6.5625,
    }
    assert all(name == scheme.name for name, scheme in SCHEMES.items())
    assert SCHEMES["q4_0"].row_bytes(64) == 36
    assert SCHEMES["q4_0"].size_bytes((3, 5, 64)) == 15 * 36
    assert SCHEMES["float16"].size_bytes((7,)) == 14


@pytest.mark.parametrize("name", BLOCK_SCHEMES)
def test_rows_must_fill_whole_blocks(name: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"{name}.*blocks of 32.*33"):
        SCHEMES[name].size_bytes((32, 33))
    # 64 weights would fill two blocks, but no block may span two rows.
    with pytest.raises(InvalidParameterError, match="row of 16"):
        quantize(name, gaussian(4, 16))


def stored(*parts: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    return np.concatenate([np.atleast_1d(part).view(np.uint8) for part in parts])


def test_q8_0_layout() -> None:
    quants = np.arange(-16, 16, dtype=np.int8)
    block = stored(np.float16(0.5), quants)
    np.testing.assert_array_equal(dequantize("q8_0", block, (32,)), quants * F(0.5))


def test_q4_layouts_hold_the_first_half_in_low_nibbles() -> None:
    low, high = np.arange(16, dtype=np.uint8), np.arange(16, dtype=np.uint8)[::-1]
    nibbles = np.concatenate([low, high]).astype(np.float32)
    packed = low | (high << 4)
    np.testing.assert_array_equal(
        dequantize("q4_0", stored(np.float16(2), packed), (32,)), 2 * (nibbles - 8)
    )
    np.testing.assert_array_equal(
        dequantize("q4_1", stored(np.array([2, -5], np.float16), packed), (32,)), 2 * nibbles - 5
    )


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("shape", [(32,), (1, 32), (3, 64), (2, 3, 96)])
def test_shapes_are_kept(name: str, shape: tuple[int, ...]) -> None:
    data = quantize(name, gaussian(*shape))
    assert data.dtype == np.uint8
    assert data.shape == (SCHEMES[name].size_bytes(shape),)
    weights = dequantize(name, data, shape)
    assert weights.dtype == np.float32
    assert weights.shape == shape


@pytest.mark.parametrize("name", WRITTEN)
def test_packing_what_was_unpacked_changes_nothing(name: str) -> None:
    data = quantize(name, gaussian(16, 256))
    weights = dequantize(name, data, (16, 256))
    np.testing.assert_array_equal(quantize(name, weights), data)


@pytest.mark.parametrize("name", WRITTEN)
def test_zero_blocks_stay_zero(name: str) -> None:
    weights = gaussian(4, 64)
    weights[1, :32] = 0
    weights[2] = -0.0
    back = dequantize(name, quantize(name, weights), weights.shape)
    assert not back[1, :32].any()
    assert not back[2].any()
    assert back[1, 32:].any()


@pytest.mark.parametrize(("name", "steps"), [("q8_0", 254), ("q4_0", 16), ("q4_1", 15)])
def test_the_error_stays_within_a_step(name: str, steps: int) -> None:
    weights = gaussian(64, 32)
    back = dequantize(name, quantize(name, weights), weights.shape)
    span = 2 * np.abs(weights).max(axis=1, keepdims=True)
    # Half a step; a whole one where q4_0 cuts the side that its 16 values do not reach. A float16
    # scale has 11 bits, so it can be off by 2**-11 of itself.
    allowed = span / steps * (1 if name == "q4_0" else 0.5) + span * 2**-11
    assert (np.abs(back - weights) <= allowed).all()


def f16_bytes(*values: np.float32) -> bytes:
    return b"".join(np.float16(value).tobytes() for value in values)


def reference_q8_0(block: Floats) -> bytes:
    scale = F(max(abs(w) for w in block)) / F(127)
    inverse = F(1) / scale if scale else F(0)

    def roundf(x: np.float32) -> int:
        return int(math.copysign(math.floor(abs(float(x)) + 0.5), float(x)))

    quants = [roundf(w * inverse) for w in block]
    return f16_bytes(scale) + np.array(quants, np.int8).tobytes()


def reference_q4_0(block: Floats) -> bytes:
    largest = F(0)
    for w in block:
        if abs(w) > abs(largest):
            largest = w
    scale = largest / F(-8)
    inverse = F(1) / scale if scale else F(0)
    nibbles = [min(15, int(w * inverse + F(8.5))) for w in block]
    return f16_bytes(scale) + bytes(nibbles[i] | nibbles[i + 16] << 4 for i in range(16))


def reference_q4_1(block: Floats) -> bytes:
    low = F(min(block))
    scale = (F(max(block)) - low) / F(15)
    inverse = F(1) / scale if scale else F(0)
    nibbles = [min(15, int((w - low) * inverse + F(0.5))) for w in block]
    return f16_bytes(scale, low) + bytes(nibbles[i] | nibbles[i + 16] << 4 for i in range(16))


REFERENCES = {"q8_0": reference_q8_0, "q4_0": reference_q4_0, "q4_1": reference_q4_1}
# Multiples of 1/4 up to 16 produce ties; small ones near-zero scales.
weights_of_a_block = hnp.arrays(
    np.float32,
    32,
    elements=st.one_of(
        st.integers(-64, 64).map(lambda n: n / 4),
        st.floats(-1000, 1000, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30),
    ),
)


@pytest.mark.parametrize("name", BLOCK_SCHEMES)
@given(block=weights_of_a_block)
def test_rounding_is_that_of_ggmls_reference_loops(name: str, block: Floats) -> None:
    # Adding zero: the sign of a zero scale or minimum is of no consequence.
    assert quantize(name, block + F(0)).tobytes() == REFERENCES[name](block + F(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", BLOCK_SCHEMES)
def test_weights_that_do_not_fit_are_refused(name: str, bad: float) -> None:
    weights = gaussian(2, 64)
    weights[1, 40] = bad
    with pytest.raises(InvalidParameterError, match=f"packed as {name}.*NaN, infinity"):
        quantize(name, weights)


@pytest.mark.parametrize("name", BLOCK_SCHEMES)
def test_tiny_weights_become_zero(name: str) -> None:
    weights = gaussian(1, 32) * F(1e-42)
    assert not dequantize(name, quantize(name, weights), weights.shape).any()


def test_bfloat16_rounds_to_the_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800001], np.uint32)
    stored_bits = quantize("bfloat16", bits.view(np.float32)).view("<u2").tolist()
    assert stored_bits == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7FC0]


def test_float16_beyond_its_range_is_infinite() -> None:
    weights = np.array([65504, 1e6, -1e6], np.float32)
    back = dequantize("float16", quantize("float16", weights), (3,))
    np.testing.assert_array_equal(back, np.array([65504, np.inf, -np.inf], np.float32))


def test_unaligned_read_only_bytes_are_read() -> None:
    weights = gaussian(2, 64)
    for name in WRITTEN:
        data = quantize(name, weights)
        shifted = np.frombuffer(b"x" + data.tobytes(), np.uint8)[1:]
        assert not shifted.flags.writeable
        np.testing.assert_array_equal(
            dequantize(name, shifted, (2, 64)), dequantize(name, data, (2, 64))
        )


def test_the_demo_models_weights_are_sane() -> None:
    with GGUFCheckpoint(demo_gguf()) as checkpoint:
        info = checkpoint.tensors["blk.0.ffn_down.weight"]
        weights = dequantize(info.dtype, checkpoint.read(info.name), info.shape)
    assert np.isfinite(weights).all()
    assert 0.01 < weights.std() < 1
    assert abs(weights.mean()) < 0.01


@pytest.mark.parametrize("name", ["q5_0", "q5_1", "q5_k", "q6_k"])
def test_what_is_not_written_says_so(name: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"{name}: it is read, not written"):
        quantize(name, gaussian(1, 256))


def test_q4_k_beats_plain_blocks_and_keeps_what_it_can_hold() -> None:
    weights = gaussian(16, 1024) * np.exp(gaussian(16, 1024, seed=1))

    def error(name: str) -> float:
        kept = dequantize(name, quantize(name, weights), weights.shape)
        return float(np.square(kept - weights).mean())

    assert error("q4_k") < 0.8 * error("q4_0")
    zeros = np.zeros((1, 256), F)
    np.testing.assert_array_equal(dequantize("q4_k", quantize("q4_k", zeros), (1, 256)), zeros)
    again = dequantize("q4_k", quantize("q4_k", weights), weights.shape)
    twice = dequantize("q4_k", quantize("q4_k", again), weights.shape)
    assert np.abs(twice - again).mean() < 0.1 * np.abs(again - weights).mean()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_q4_k_refuses_what_is_not_finite(value: float) -> None:
    weights = gaussian(1, 256)
    weights[0, 7] = value
    with pytest.raises(InvalidParameterError, match="q4_k"):
        quantize("q4_k", weights)
