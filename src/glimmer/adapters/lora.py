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
from glimmer.checkpoints import TensorInfo
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
        "enable_lora": "its B is in groups (PEFT 0.2 and before)",
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
# The engine multiplies in float32.
_LARGEST = float(np.finfo(np.float32).max)


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
    own_ranks = _Values(path, config, "r", "rank_pattern")
    own_alphas = _Values(path, config, "lora_alpha", "alpha_pattern")
    low_rank: dict[str, LowRank] = {}
    for name, module in modules.items():
        rank, alpha = own_ranks.of(name), own_alphas.of(name)
        tensors = {half: shard.tensors[halves[name][half]] for half in "AB"}
        _check(path, module, rank, tensors)
        scale = _scale(path, config, module, rank, alpha)
        a, b = (_read(shard, tensors[half]) for half in "AB")
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
        halves = found.setdefault(match["module"], {})
        if (other := halves.setdefault(match["half"], name)) != name:
            raise MalformedCheckpointError(
                f"{shard.path}: the tensors {other!r:.200} and {name!r:.200} are the same half of "
                "one linear; the file mixes two adapters: save it again."
            )
    if not found:
        raise MalformedCheckpointError(f"{shard.path} holds no tensor; the training saved nothing.")
    for module, both in found.items():
        if len(both) == 1:
            (half,) = both
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


def _check(path: Path, module: Module, rank: Any, tensors: Mapping[str, TensorInfo]) -> None:
    """Whether tensors are as the config says and fit the network, before any is read: a file may
    claim any size."""
    if type(rank) is not int or rank < 1:
        raise MalformedCheckpointError(
            f"{path}: the rank of {module.name} must be a positive integer, but it is {rank!r:.40} "
            "in adapter_config.json."
        )
    wanted = {"A": (rank, module.num_columns), "B": (module.num_rows, rank)}
    for half, tensor in tensors.items():
        if tensor.dtype not in ("float32", "float16", "bfloat16") or len(tensor.shape) != 2:
            raise MalformedCheckpointError(
                f"{path}: tensor {tensor.name!r:.200} is {tensor.dtype} {list(tensor.shape)}, "
                "but it must be a matrix of float32, float16 or bfloat16."
            )
        if tensor.shape != wanted[half]:
            raise MalformedCheckpointError(
                f"{path}: tensor {tensor.name!r:.200} has shape {list(tensor.shape)}, but with "
                f"rank {rank} (adapter_config.json) on {module.name}, which is "
                f"[{module.num_rows}, {module.num_columns}] in this network, it must be "
                f"{list(wanted[half])}. The adapter was trained on another network, or the config "
                "is another adapter's."
            )
    if rank > (most := max(module.num_rows, module.num_columns)):
        raise MalformedCheckpointError(
            f"{path}: the rank of {module.name} is {rank}, but a linear of [{module.num_rows}, "
            f"{module.num_columns}] takes at most {most}: more would be larger than the linear "
            "itself."
        )


def _scale(path: Path, config: Mapping[str, Any], module: Module, rank: int, alpha: Any) -> float:
    """alpha / rank, or with rsLoRA alpha over its square root."""
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    # Not so for NaN either; and no scale is larger than its alpha.
    if not is_number or not abs(alpha) <= _LARGEST:
        raise MalformedCheckpointError(
            f"{path}: lora_alpha must be a number of float32's range, but for {module.name} it is "
            f"{alpha!r:.40} in adapter_config.json."
        )
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _read(shard: Shard, tensor: TensorInfo) -> Floats:
    assert tensor.dtype in SCHEMES
    return np.ascontiguousarray(dequantize(tensor.dtype, shard.read(tensor.name), tensor.shape))


class _Values:
    """What the config says of single modules: the first pattern that fits the end of a module's
    name decides, as in PEFT's get_pattern_key; where none does, ``key`` is for all.

    Raises:
        MalformedCheckpointError: ``patterns`` is no object, or holds no regular expression.
        UnsupportedArchitectureError: an expression that could take for ever.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], key: str, patterns: str) -> None:
        self._default = config.get(key)
        given = config.get(patterns) or {}
        if not isinstance(given, dict):
            raise MalformedCheckpointError(f"{path}: {patterns} must be an object.")
        # Compiled once: there may be as many patterns as modules, more than re remembers.
        self._patterns = [
            (self._compiled(path, patterns, pattern), value) for pattern, value in given.items()
        ]

    def of(self, module: str) -> Any:
        return next((v for pattern, v in self._patterns if pattern.match(module)), self._default)

    @staticmethod
    def _compiled(path: Path, patterns: str, pattern: str) -> re.Pattern[str]:
        if not _SIMPLE_PATTERN.fullmatch(pattern) or (
            sum(pattern.count(c) for c in "*+?") > _MOST_WILDCARDS
        ):
            raise UnsupportedArchitectureError(
                f"{path}: {patterns} has the pattern {pattern!r:.80}; names of modules are read, "
                f"with at most {_MOST_WILDCARDS} wildcards (* + ?) and no groups. Write the names "
                "out in adapter_config.json."
            )
        try:
            return re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise MalformedCheckpointError(
                f"{path}: {patterns} has the pattern {pattern!r:.80}, which is no regular "
                f"expression: {error}."
            ) from error


def _rows(b: Floats, rows: tuple[RowRange, ...] | None) -> Floats:
    if rows is None:
        return b
    return np.ascontiguousarray(np.concatenate([b[slice(*bounds)] for bounds in rows]))
