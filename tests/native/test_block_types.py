"""Every stored type of GGUF that is run, with the weights that the file says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from glimmer.architecture import Architecture, Rope
from glimmer.errors import UnsupportedTensorTypeError
from glimmer.native import NativeModel
from glimmer.quantization import SCHEMES, dequantize
from tests.support.compare import check_batch
from tests.support.tiny import (
    BLOCK_DTYPES,
    DTYPES,
    K_BLOCK,
    K_DTYPES,
    READ_DTYPES,
    TinyModel,
    encode,
    run,
)

ALL = (*BLOCK_DTYPES, *READ_DTYPES, *K_DTYPES)


def network(**choices: Any) -> Architecture:
    """Odd numbers of rows wherever that is possible; inputs of whole K-blocks."""
    sizes: dict[str, Any] = {
        "vocab_size": 77,
        "hidden_size": K_BLOCK,
        "num_layers": 1,
        "num_heads": 16,
        "num_kv_heads": 1,
        "head_dim": 16,
        "intermediate_size": 2 * K_BLOCK,
        "max_position": 128,
        "rope": Rope(dims=8, base=1e4),
        "norm_eps": 1e-5,
        "qkv_bias": True,
    }
    return Architecture(**{**sizes, **choices})


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("dtype", [*READ_DTYPES, *K_DTYPES])
def test_a_step_equals_the_reference(dtype: str, activations: str) -> None:
    check_batch(TinyModel.random(network(), (dtype,)), activations, lengths=(1, 3, 6, 33))


def test_all_types_in_one_network() -> None:
    for seed in range(3):
        model = TinyModel.random(network(tied_head=seed == 1), (*ALL, *DTYPES), seed)
        check_batch(model, "int16", lengths=(2, 5), chunk=3)


@pytest.mark.parametrize("dtype", ALL)
def test_the_definition_in_numpy_is_the_files(dtype: str) -> None:
    matrix = np.random.default_rng(0).standard_normal((5, 2 * K_BLOCK)).astype(np.float32)
    stored, values = encode(dtype, matrix)
    np.testing.assert_array_equal(dequantize(dtype, stored, matrix.shape), values)


@pytest.mark.parametrize("dtype", ALL)
def test_an_embedding_is_read_back_bit_for_bit(dtype: str) -> None:
    """A network whose layers add nothing and whose head is 1 gives the sums of normed rows."""
    model = TinyModel.random(network(), (dtype,))

    def logits(data: npt.NDArray[np.uint8], stored: str) -> npt.NDArray[np.float32]:
        native = NativeModel(network(), 1)
        for name, shape in network().weight_shapes().items():
            if name == "embedding.weight":
                native.load(name, stored, shape, data)
                continue
            same = np.zeros(shape, np.float32)
            if name == "final_norm.weight":
                same[:] = np.random.default_rng(1).standard_normal(shape)
            elif name == "head.weight":
                same[0] = 1
            native.load(name, "float32", shape, same.view(np.uint8).reshape(-1))
        native.finish()
        ids = np.arange(77, dtype=np.int32)
        (found,) = run(native, [ids], kv_dtype="float32")
        return found[:, 0]

    floats = model.weights["embedding.weight"].view(np.uint8).reshape(-1)
    np.testing.assert_array_equal(
        logits(model.stored["embedding.weight"], dtype), logits(floats, "float32")
    )


@pytest.mark.parametrize("dtype", [*READ_DTYPES, *K_DTYPES])
def test_what_is_read_only_is_said_to_be(dtype: str) -> None:
    model = NativeModel(network(), 1)
    data = np.zeros((77, K_BLOCK), np.float32).view(np.uint8).reshape(-1)
    with pytest.raises(UnsupportedTensorTypeError, match=f"{dtype}.*only be read"):
        model.load("embedding.weight", "float32", (77, K_BLOCK), data, dtype)


def test_every_scheme_runs() -> None:
    assert set(SCHEMES) == {*DTYPES, *ALL}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ALL)
def test_the_definition_is_that_of_the_gguf_package(dtype: str) -> None:
    gguf = pytest.importorskip("gguf")
    scheme = SCHEMES[dtype]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (64, scheme.block_bytes), np.uint8)
    scales = {"q6_k": (208,), "q4_1": (0, 2), "q5_1": (0, 2), "q4_k": (0, 2), "q5_k": (0, 2)}
    for offset in scales.get(dtype, (0,)):
        halfs = rng.standard_normal(64).astype("<f2")
        blocks[:, offset : offset + 2] = halfs[:, None].view(np.uint8)
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    theirs = gguf.quants.dequantize(blocks.reshape(-1), kind).reshape(64, -1)
    np.testing.assert_array_equal(scheme.dequantize(blocks), theirs)
