"""Weights in 8 or 4 bits on torch: by which library, and computed in what."""

from __future__ import annotations

import logging
import math
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from glimmer.architecture import Architecture
from glimmer.errors import MissingExtraError

_LINEARS = frozenset({"attn_q", "attn_k", "attn_v", "attn_out", "mlp_gate", "mlp_up", "mlp_down"})
IntegerKind = Literal["int8", "int4"]
# Of torchao's int4: weights that share a scale.
_GROUP = 32
# Of NF4. Rows of another length may cross blocks, but not on a processor.
_NF4_BLOCK = 64


def integer_config(
    kind: IntegerKind, device: torch.device, architecture: Architecture
) -> tuple[Any, torch.dtype]:
    """The ``quantization_config`` for a device, and the type of all that it leaves alone and of
    what is computed.

    bitsandbytes (LLM.int8, NF4), or torchao where that is not installed, lacks the device or, on a
    processor, cannot compute with rows of this length.

    Raises:
        MissingExtraError: neither is installed.
    """
    compute = compute_dtype(device)
    widths = {shape[1] for name, shape in architecture.weight_shapes().items() if _is_held(name)}
    fits = kind == "int8" or device.type != "cpu" or not any(w % _NF4_BLOCK for w in widths)
    if fits and device.type in _bitsandbytes_devices():
        if kind == "int8":
            # It tells of each product that its inputs become float16.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            return BitsAndBytesConfig(load_in_8bit=True), compute
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        ), compute
    if find_spec("torchao") is None:
        raise MissingExtraError.of("bitsandbytes or torchao")
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    own = (
        Int8WeightOnlyConfig()
        if kind == "int8"
        else IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(_GROUP))
    )
    return TorchAoConfig(own), compute


def _bitsandbytes_devices() -> set[str]:
    if find_spec("bitsandbytes") is None:
        return set()
    import bitsandbytes

    return set(bitsandbytes.supported_torch_devices)


def integer_bytes(kind: IntegerKind, device: torch.device, architecture: Architecture) -> int:
    """What the weights will take, about."""
    each = {"int8": 1.0, "int4": 0.5 + 4 / _NF4_BLOCK}[kind]
    wide = compute_dtype(device).itemsize
    return round(
        sum(
            math.prod(shape) * (each if _is_held(name) else wide)
            for name, shape in architecture.weight_shapes().items()
        )
    )


def _is_held(name: str) -> bool:
    """Whether a weight is held in integers: a linear's, but for the head and routed experts, which
    are one tensor in transformers."""
    linear = name.rpartition(".")[0].rpartition(".")[2]
    return name.endswith(".weight") and linear in _LINEARS and ".experts." not in name


def compute_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float16
