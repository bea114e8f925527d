"""A model's name, path or config in, the memory that it takes out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glimmer.architecture import Architecture
from glimmer.catalogue import find_file, find_release
from glimmer.checkpoints import Checkpoint, ConfigCheckpoint, PackedCheckpoint, open_checkpoint
from glimmer.errors import InvalidParameterError
from glimmer.families import Family, recognise
from glimmer.loader import TARGETS, Weights, release_of
from glimmer.native.model import KVDType
from glimmer.packed_source import open_source
from glimmer.planning import Plan, plan

# A long context is asked for, not taken: few conversations come near a million tokens.
_DEFAULT_CONTEXT = 8192
_FLOATS = {"float16", "bfloat16", "float32"}


@dataclass(frozen=True, slots=True)
class ModelMemory:
    name: str
    family: str
    architecture: Architecture
    stored: Mapping[str, str]
    """By canonical name, what each weight is in the file."""
    context: int
    batch: int
    weights: Weights
    kv_dtype: KVDType
    has_tokenizer: bool
    mapped: bool
    """Whether it is a packed folder, whose weights run where they lie."""
    plan: Plan


def memory_of(
    model: str | os.PathLike[str],
    *,
    context: int | None = None,
    batch: int = 1,
    weights: Weights = "auto",
    kv_dtype: KVDType = "float16",
    family: str | None = None,
) -> ModelMemory:
    """The memory of a release, a model's folder or file, or a folder with nothing but its config.

    Raises:
        ModelNotFoundError: neither a release nor anything that lies here.
        InvalidParameterError: a value that is not allowed.
        CheckpointError: the config or the files are at fault.
    """
    name, found, architecture, stored, has_tokenizer, mapped = _describe(model, family)
    if context is None:
        context = min(architecture.max_position, _DEFAULT_CONTEXT)
    return ModelMemory(
        name,
        found.name,
        architecture,
        stored,
        context,
        batch,
        weights,
        kv_dtype,
        has_tokenizer,
        mapped,
        plan(
            architecture,
            loaded_dtypes(architecture, stored, weights),
            stored,
            context=context,
            batch=batch,
            kv_dtype=kv_dtype,
            has_tokenizer=has_tokenizer,
            mapped=mapped,
        ),
    )


def loaded_dtypes(
    architecture: Architecture, stored: Mapping[str, str], weights: Weights
) -> dict[str, str]:
    """What each weight is once it is loaded; vectors, routers and prefixes are float32."""
    target = TARGETS[weights]
    return {
        name: "float32"
        if len(shape) == 1 or "router." in name or "prefix_" in name
        else target or stored[name]
        for name, shape in architecture.weight_shapes().items()
    }


def fitting_context(memory: ModelMemory, available: int) -> str | None:
    """What to do for a model to fit: the widest weights and the longest context that do."""
    choices: tuple[Weights, ...] = ("auto", "int8", "int4")
    for weights in choices[choices.index(memory.weights) if memory.weights in choices else 0 :]:
        context = memory.context
        while context >= 512:
            found = plan(
                memory.architecture,
                loaded_dtypes(memory.architecture, memory.stored, weights),
                memory.stored,
                context=context,
                batch=memory.batch,
                kv_dtype=memory.kv_dtype,
                has_tokenizer=memory.has_tokenizer,
                mapped=memory.mapped,
            )
            if found.peak <= available:
                form = "" if weights == memory.weights else f" with --weights {weights}"
                size = "" if context == memory.context else f" and a context of {context} tokens"
                return f"It would{form}{size}: {found.peak / 2**30:.1f} GiB."
            context //= 2
    return None


def _describe(
    model: str | os.PathLike[str], family: str | None
) -> tuple[str, Family, Architecture, Mapping[str, str], bool, bool]:
    """Name, family, network, stored types, and whether there is a tokenizer and weights are
    mapped."""
    path = Path(model).expanduser()
    if path.name == "config.json" and path.is_file():
        path = path.parent
    release = None if path.exists() else find_release(os.fspath(model))
    if release is not None and release.config is not None:
        checkpoint: Checkpoint = ConfigCheckpoint(release.name, release.config)
        return release.name, *_from_config(checkpoint, family), True, False
    if not path.exists():
        path, release = find_file(model)
    if path.is_dir() and (path / "config.json").is_file() and not _has_weights(path):
        checkpoint = ConfigCheckpoint(path)
        found, architecture, stored = _from_config(checkpoint, family)
        return path.name, found, architecture, stored, found.has_tokenizer(checkpoint), False
    with open_checkpoint(path) as opened:
        source = open_source(opened, family)
        release = release or release_of(opened)
        return (
            release.name if release is not None else source.name,
            source.family,
            source.architecture,
            source.dtypes,
            source.family.has_tokenizer(opened),
            isinstance(opened, PackedCheckpoint),
        )


def _from_config(
    checkpoint: Checkpoint, family: str | None
) -> tuple[Family, Architecture, Mapping[str, str]]:
    """What the files will hold, as their config says."""
    found = recognise(checkpoint, family)
    architecture = found.architecture(checkpoint)
    config = checkpoint.metadata
    floats = config.get("torch_dtype", config.get("dtype", "float16"))
    floats = floats if floats in _FLOATS else "float16"
    integers = {8: "q8_0", 4: "q4_0", None: floats}.get(config.get("quantization_bit"))
    if integers is None:
        raise InvalidParameterError(
            f"{checkpoint.path}: quantization_bit is {config.get('quantization_bit')!r}; 4 and 8 "
            "are known."
        )
    kept = set() if config.get("quantization_embeddings") else {"embedding.weight"}
    exporter = found.exporter
    if exporter is not None:
        kept |= exporter.unquantized - {"embedding.weight"}
    stored = {
        name: floats if len(shape) == 1 or name in kept else integers
        for name, shape in architecture.weight_shapes().items()
    }
    return found, architecture, stored


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
