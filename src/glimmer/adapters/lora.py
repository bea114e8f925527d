"""A PEFT folder of LoRA: adapter_config.json and adapter_model.safetensors or .bin.

Names and scaling: LoraLayer and get_peft_model_state_dict of PEFT. What an adapter may hold beyond
low-rank products, and would be lost here, is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from glimmer.adapters.adapter import Adapter, LowRank
from glimmer.adapters.modules import Module, find_modules
from glimmer.architecture import Architecture
from glimmer.checkpoints.folder import Shard
from glimmer.errors import MalformedCheckpointError, UnsupportedArchitectureError
from glimmer.families import Family
from glimmer.families.weight_map import RowRange
from glimmer.quantization import SCHEMES, dequantize

Floats = npt.NDArray[np.float32]

_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight"
)
# The base's own weight, frozen, which PEFT saves as well where it adapts the head.
_BASE = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.base_layer\.weight")
_PLAIN = "train again without it, or merge it with PEFT and use the merged model"
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "use_dora": "DoRA scales the base's own weights as well",
        "modules_to_save": "it brings whole modules of its own",
        "fan_in_fan_out": "its weights are transposed",
        "lora_bias": "its B has a bias",
        "use_qalora": "QA-LoRA pools its inputs",
        "trainable_token_indices": "it changes the embedding of single tokens",
        "target_parameters": "it changes parameters that are no linears, such as fused experts",
        "layer_replication": "it repeats layers of the base",
        "alora_invocation_tokens": "it acts from a certain token on only",
        "use_bdlora": "its B is block-diagonal",
        "arrow_config": "it routes between several adapters",
        "kasa_config": "it cuts the base's weights",
        "monteclora_config": "it draws its weights",
    }
)
# Ways to begin a training that change the base's weights too.
_CHANGED_BASES = ("pissa", "olora", "loftq", "corda", "lora_ga")
# Of the keys of rank_pattern and alpha_pattern, which PEFT takes for regular expressions: names,
# and few wildcards, so that none takes for ever.
_SIMPLE_PATTERN = re.compile(r"[\w.\\^$\[\]*+?-]{1,200}")
_MOST_WILDCARDS = 2


def read_lora(
    path: Path,
    config: Mapping[str, Any],
    shard: Shard,
    family: Family,
    architecture: Architecture,
) -> Adapter:
    """Raises:
    UnsupportedArchitectureError: it is more than low-rank products; the message says what.
    MalformedCheckpointError: a tensor that does not fit the network, or is missing.
    """
    _refuse_more(config, path)
    halves = _halves(shard)
    modules = find_modules(family, architecture, halves, str(path))
    _check_bases(shard, modules)
    low_rank: dict[str, LowRank] = {}
    for name, module in modules.items():
        a, b = (_read(shard, halves[name], half) for half in "AB")
        scale = _check(path, config, module, halves[name], a, b)
        for part in module.parts:
            low_rank[part.name] = LowRank(a, _rows(b, part.rows), scale)
    base = config.get("base_model_name_or_path")
    return Adapter(
        path,
        family.name,
        base if isinstance(base, str) else None,
        MappingProxyType(low_rank),
    )


def _refuse_more(config: Mapping[str, Any], path: Path) -> None:
    def refuse(key: str, why: str) -> UnsupportedArchitectureError:
        return UnsupportedArchitectureError(
            f"{path}: {key} is {config.get(key)!r:.80} in adapter_config.json: {why}, which is not "
            f"supported here. To use it, {_PLAIN}."
        )

    for key, why in _REFUSED.items():
        if config.get(key):
            raise refuse(key, why)
    if config.get("bias", "none") != "none":
        raise refuse("bias", "it changes biases of the base")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
        raise refuse(
            "init_lora_weights", "its training began by changing the base's weights, so it fits the"
            " changed ones alone",
        )  # fmt: skip


def _halves(shard: Shard) -> dict[str, dict[str, str]]:
    """By module, the tensors A and B."""
    found: dict[str, dict[str, str]] = {}
    for name in shard.tensors:
        match = _NAME.fullmatch(name)
        if match is None and _BASE.fullmatch(name):
            continue
        if match is None:
            why = "is more than the A and B of a linear"
            if "lora_embedding_" in name:
                why = "belongs to an embedding, which is not supported here"
            elif "lora_magnitude_vector" in name:
                why = "belongs to DoRA, which scales the base's own weights"
            raise UnsupportedArchitectureError(
                f"{shard.path}: the tensor {name!r:.200} {why}. To use the adapter, {_PLAIN}."
            )
        found.setdefault(match["module"], {})[match["half"]] = name
    if not found:
        raise MalformedCheckpointError(f"{shard.path} holds no tensor; the training saved nothing.")
    for module, halves in found.items():
        if len(halves) == 1:
            (half,) = halves
            raise MalformedCheckpointError(
                f"{shard.path} has lora_{half} of {module!r:.200} without its other half; the file "
                "is incomplete."
            )
    return found


def _check_bases(shard: Shard, modules: Mapping[str, Module]) -> None:
    """A base's weight of another shape is that of another network: its vocabulary has grown."""
    for name, tensor in shard.tensors.items():
        if (match := _BASE.fullmatch(name)) is None:
            continue
        module = modules.get(match["module"])
        wanted = None if module is None else [module.num_rows, module.num_columns]
        if list(tensor.shape) != wanted:
            raise MalformedCheckpointError(
                f"{shard.path}: tensor {name!r:.200} is the base's own, of shape "
                f"{list(tensor.shape)}, but this network has {wanted or 'no such linear'} there. "
                "The adapter was trained on another network."
            )


def _read(shard: Shard, names: Mapping[str, str], half: str) -> Floats:
    tensor = shard.tensors[names[half]]
    if tensor.dtype not in ("float32", "float16", "bfloat16") or len(tensor.shape) != 2:
        raise MalformedCheckpointError(
            f"{shard.path}: tensor {tensor.name!r:.200} is {tensor.dtype} {list(tensor.shape)}, "
            "but it must be a matrix of float32, float16 or bfloat16."
        )
    assert tensor.dtype in SCHEMES
    return np.ascontiguousarray(dequantize(tensor.dtype, shard.read(tensor.name), tensor.shape))


def _check(
    path: Path,
    config: Mapping[str, Any],
    module: Module,
    names: Mapping[str, str],
    a: Floats,
    b: Floats,
) -> float:
    """The scale of a module whose tensors are as the config says and fit the network."""
    rank = _value(path, config, "r", "rank_pattern", module.name)
    alpha = _value(path, config, "lora_alpha", "alpha_pattern", module.name)
    if type(rank) is not int or rank < 1:
        raise MalformedCheckpointError(
            f"{path}: the rank of {module.name} must be a positive integer, but it is {rank!r:.40} "
            "in adapter_config.json."
        )
    wanted = {"A": (rank, module.num_columns), "B": (module.num_rows, rank)}
    for half, array in (("A", a), ("B", b)):
        if array.shape != wanted[half]:
            raise MalformedCheckpointError(
                f"{path}: tensor {names[half]!r:.200} has shape {list(array.shape)}, but with rank "
                f"{rank} (adapter_config.json) on {module.name}, which is "
                f"[{module.num_rows}, {module.num_columns}] in this network, it must be "
                f"{list(wanted[half])}. The adapter was trained on another network."
            )
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise MalformedCheckpointError(
            f"{path}: lora_alpha must be a number, but it is {alpha!r:.40} in adapter_config.json."
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _value(path: Path, config: Mapping[str, Any], key: str, patterns: str, module: str) -> Any:
    """The first pattern that fits the end of a module's name decides, as in PEFT's
    get_pattern_key."""
    given = config.get(patterns) or {}
    if not isinstance(given, dict):
        raise MalformedCheckpointError(f"{path}: {patterns} must be an object.")
    for pattern, value in given.items():
        if not _SIMPLE_PATTERN.fullmatch(pattern) or (
            sum(pattern.count(c) for c in "*+?") > _MOST_WILDCARDS
        ):
            raise UnsupportedArchitectureError(
                f"{path}: {patterns} has the pattern {pattern!r:.80}; names of modules are read, "
                f"with at most {_MOST_WILDCARDS} wildcards (* + ?) and no groups. Write the names "
                "out in adapter_config.json."
            )
        try:
            fits = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise MalformedCheckpointError(
                f"{path}: {patterns} has the pattern {pattern!r:.80}, which is no regular "
                f"expression: {error}."
            ) from error
        if fits:
            return value
    return config.get(key)


def _rows(b: Floats, rows: tuple[RowRange, ...] | None) -> Floats:
    if rows is None:
        return b
    return np.ascontiguousarray(np.concatenate([b[slice(*bounds)] for bounds in rows]))
