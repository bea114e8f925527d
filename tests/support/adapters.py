"""Adapters with random weights, in memory and as the folders that training programs write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glimmer.architecture import Architecture
from glimmer.checkpoints.safetensors_writer import NewTensor, write_safetensors
from glimmer.families import all_families
from glimmer.quantization import quantize
from tests.support import families, hf_folder
from tests.support.reference import LowRank
from tests.support.tiny import Floats

Half = tuple[Floats, Floats]
"""A ``[rank, in]`` and B ``[out, rank]``."""
MODULES = (
    "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h",
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip


def random_half(out: int, inputs: int, rank: int, rng: np.random.Generator) -> Half:
    """A product whose values are about a third of a random weight's."""
    a = rng.standard_normal((rank, inputs)) / np.sqrt(inputs)
    b = rng.standard_normal((out, rank)) / np.sqrt(rank) / 3
    return a.astype(np.float32), b.astype(np.float32)


def random_low_rank(
    architecture: Architecture,
    rank: int,
    seed: int = 0,
    *,
    scale: float = 1.5,
    linears: Sequence[str] = ("attn_", "mlp_", "head"),
    shared_inputs: bool = False,
) -> dict[str, LowRank]:
    """By canonical name, for all linears whose names begin so, but not routed experts'. With
    ``shared_inputs`` queries, keys and values have one A, as they have where they are one tensor.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, LowRank] = {}
    for name, shape in architecture.weight_shapes().items():
        linear = name.removesuffix(".weight").rpartition(".")[2]
        is_dense = ".experts." not in name and "norm" not in name
        if len(shape) != 2 or not is_dense or not linear.startswith(tuple(linears)):
            continue
        a, b = random_half(*shape, rank, rng)
        layer = name.rpartition(".attn_")[0]
        if shared_inputs and linear in ("attn_k", "attn_v"):
            a = found[f"{layer}.attn_q"][0]
        found[name.removesuffix(".weight")] = (a, b, scale)
    return found


def merged(weights: Mapping[str, Floats], low_rank: Mapping[str, LowRank]) -> dict[str, Floats]:
    """float32 weights with the products added."""
    result = dict(weights)
    for name, (a, b, scale) in low_rank.items():
        product = scale * (b.astype(np.float64) @ a.astype(np.float64))
        result[f"{name}.weight"] = (weights[f"{name}.weight"] + product).astype(np.float32)
    return result


def random_modules(
    tensors: Mapping[str, Floats],
    rank: int,
    seed: int = 0,
    modules: Sequence[str] = MODULES,
) -> dict[str, Half]:
    """For the linears of a file that end so, by the names of their modules."""
    rng = np.random.default_rng(seed)
    return {
        name.removesuffix(".weight"): random_half(*tensor.shape, rank, rng)
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and name.removesuffix(".weight").endswith(tuple(modules))
    }


def write_lora(
    folder: Path,
    modules: Mapping[str, Half],
    *,
    kind: str = "safetensors",
    dtype: str = "float32",
    tensors: Mapping[str, Floats] | None = None,
    **config: Any,
) -> Path:
    """As PEFT's save_pretrained. ``tensors`` are further ones by their whole names."""
    folder.mkdir(parents=True)
    found = {
        f"base_model.model.{module}.lora_{half}.weight": array
        for module, both in modules.items()
        for half, array in zip("AB", both, strict=True)
    }
    stored = {
        name: hf_folder.Stored(dtype, array.shape, quantize(dtype, array).tobytes())
        for name, array in {**found, **(tensors or {})}.items()
    }
    suffix = "safetensors" if kind == "safetensors" else "bin"
    (folder / f"adapter_model.{suffix}").write_bytes(hf_folder.WRITERS[kind](stored))
    rank = next(iter(modules.values()))[0].shape[0] if modules else 8
    values = {
        **{"peft_type": "LORA", "r": rank, "lora_alpha": 12, "bias": "none"},
        **{"base_model_name_or_path": "someone/base", "target_modules": ["q_proj"]},
        **{"use_dora": False, "use_rslora": False, "modules_to_save": None, "rank_pattern": {}},
        **{"alpha_pattern": {}, "init_lora_weights": True, "task_type": "CAUSAL_LM"},
    }
    (folder / "adapter_config.json").write_text(json.dumps({**values, **config}))
    return folder


def write_prefix(
    folder: Path,
    values: Floats,
    *,
    kind: str = "safetensors",
    dtype: str = "float32",
    **config: Any,
) -> Path:
    """As the official fine-tuning writes it: the prefix encoder alone. ``values`` are
    ``[length, num_layers * 2 * kv_width]``."""
    tensors = {"transformer.prefix_encoder.embedding.weight": values}
    stored = {
        name: hf_folder.Stored(dtype, array.shape, quantize(dtype, array).tobytes())
        for name, array in tensors.items()
    }
    given = {"model_type": "chatglm", "pre_seq_len": len(values), "prefix_projection": False}
    return hf_folder.write_folder(folder, stored, kind=kind, config={**given, **config})


def write_base(
    folder: Path,
    family: str,
    layout_name: str,
    architecture: Architecture,
    tensors: Mapping[str, Floats],
    *,
    dtype: str = "float32",
) -> Path:
    """A model's folder from the tensors of its file."""
    folder.mkdir(parents=True)
    write_safetensors(
        folder,
        [
            NewTensor(name, dtype, t.shape, lambda t=t: quantize(dtype, t))  # type: ignore[misc]
            for name, t in tensors.items()
        ],
    )
    config = families.configs(family)[layout_name](
        architecture, dtype=dtype, eos_token_ids=(2, 3), pad_token_id=0
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def file_tensors(
    family: str, layout_name: str, architecture: Architecture, seed: int = 0
) -> dict[str, Floats]:
    """Random weights as a file of that layout names and cuts them."""
    layout = all_families()[family].weight_map.layout(layout_name)
    assert layout is not None
    return families.assemble(layout, architecture, families.tiny_weights(architecture, seed))


def add_modules(
    tensors: Mapping[str, Floats], modules: Mapping[str, Half], scale: float
) -> dict[str, Floats]:
    """The tensors of the merged model."""
    result = dict(tensors)
    for module, (a, b) in modules.items():
        product = scale * (b.astype(np.float64) @ a.astype(np.float64))
        result[f"{module}.weight"] = (tensors[f"{module}.weight"] + product).astype(np.float32)
    return result


def random_prefix(architecture: Architecture, length: int, seed: int = 0) -> Floats:
    """``[length, num_layers, 2, kv_width]``"""
    a = architecture
    shape = (length, a.num_layers, 2, a.num_kv_heads * a.head_dim)
    values: npt.NDArray[np.float64] = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(np.float32)
