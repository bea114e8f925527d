from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.checkpoints.safetensors import SafetensorsFile
from glimmer.errors import InvalidParameterError
from glimmer.quantization import dequantize
from glimmer.quantization.official_rows import dequantize_rows, quantize_rows, rows_to_blocks
from tests.support import golden


def by_definition(row: list[float], bits: int) -> tuple[list[int], np.float16]:
    """One row, number by number, in float16."""
    largest = np.float16(max(abs(np.float16(x)) for x in row))
    scale = np.float16(largest / np.float16(2 ** (bits - 1) - 1))
    return [int(np.rint(np.float16(x) / scale)) if scale else 0 for x in row], scale


@pytest.mark.parametrize("bits", [8, 4])
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), pairs=st.integers(1, 40))
def test_rows_follow_the_definition(bits: int, seed: int, rows: int, pairs: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((rows, 2 * pairs)).astype(np.float32)
    data, scales = quantize_rows(weights, bits)
    for i, row in enumerate(weights.tolist()):
        integers, scale = by_definition(row, bits)
        assert scales[i] == scale
        stored = data[i].view(np.uint8).tolist()
        if bits == 4:
            pair_bytes = zip(integers[::2], integers[1::2], strict=True)
            assert stored == [(a & 15) << 4 | (b & 15) for a, b in pair_bytes]
        else:
            assert stored == [q & 255 for q in integers]
        expected = np.array(integers, np.float32) * np.float32(scale)
        np.testing.assert_array_equal(dequantize_rows(data, scales, bits)[i], expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_hold_the_same_weights(bits: int) -> None:
    weights = np.random.default_rng(1).standard_normal((7, 96)).astype(np.float32)
    data, scales = quantize_rows(weights, bits)
    dtype, blocks = rows_to_blocks(data, scales, weights.shape, bits)
    assert dtype == {8: "q8_0", 4: "q4_0"}[bits]
    np.testing.assert_array_equal(
        dequantize(dtype, blocks.reshape(-1), weights.shape), dequantize_rows(data, scales, bits)
    )


def test_a_row_of_zeros_stays_zero() -> None:
    data, scales = quantize_rows(np.zeros((1, 4), np.float32), 4)
    assert not data.any()
    assert not scales.any()


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e6])
def test_what_float16_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(InvalidParameterError, match="beyond float16"):
        quantize_rows(np.array([[1.0, value]], np.float32), 8)


def test_odd_rows_of_4_bits_are_refused() -> None:
    with pytest.raises(InvalidParameterError, match="pairs"):
        quantize_rows(np.ones((1, 3), np.float32), 4)


@pytest.mark.parametrize(
    "name",
    ["chatglm-6b-int4", "chatglm-6b-int4-qe", "chatglm-6b-int8", "chatglm2-6b-int4",
     "chatglm2-6b-int8"],
)  # fmt: skip
def test_official_files_are_read_and_written_as_the_official_code_does(name: str) -> None:
    folder = golden.folder(name)
    file = SafetensorsFile(folder / "model.safetensors")
    expected = SafetensorsFile(folder / "golden.safetensors")
    bits = 8 if "int8" in name else 4
    (key,) = [key for key in expected.tensors if key.startswith("dequantized.")]
    tensor = file.tensors[(weight := key.removeprefix("dequantized.") + ".weight")]
    data = file.read(weight).view(np.int8).reshape(tensor.shape)
    scales = file.read(weight + "_scale").view(np.float16)
    floats = expected.read(key).view(np.float32).reshape(expected.tensors[key].shape)
    np.testing.assert_array_equal(dequantize_rows(data, scales, bits), floats)

    source = SafetensorsFile(golden.folder(name.split("-int")[0]) / "model.safetensors")
    original = source.read(weight).view(np.float16).astype(np.float32).reshape(floats.shape)
    written, written_scales = quantize_rows(original, bits)
    np.testing.assert_array_equal(written, data)
    np.testing.assert_array_equal(written_scales, scales)
