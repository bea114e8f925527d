"""A checkpoint as a packed folder: weights as the kernels read them, all else as it was.

Weights pass through one at a time, as in ``glimmer.export``; the engine packs them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glimmer.checkpoints import Checkpoint, GGUFCheckpoint
from glimmer.checkpoints.atomic import new_folder
from glimmer.checkpoints.packed import GGUF_FILE, NewWeight, write_packed
from glimmer.model_source import ModelSource
from glimmer.native import NativeModel

# What lies beside weights and belongs to the model: configs, tokenizers, templates, licences.
_KEPT_SUFFIXES = frozenset({".json", ".model", ".jinja", ".txt", ".md", ""})
_INDEX_SUFFIX = ".index.json"
_MAX_FILE_BYTES = 100_000_000


def write_packed_folder(
    source: ModelSource,
    target: Path,
    *,
    release: str | None,
    dtype: str | None,
    overwrite: bool,
    progress: Callable[[int, int], None],
) -> tuple[int, Mapping[str, int]]:
    """Bytes of the weights, and their number by type. Matrices become ``dtype``, if given.

    Raises as ``glimmer.export.convert``.
    """
    native = NativeModel(source.architecture)
    weights = [_weight(source, native, name, dtype) for name in source.shapes]
    size = sum(weight.padded_bytes for weight in weights)
    with new_folder(target, size_bytes=size, overwrite=overwrite) as folder:
        write_packed(
            folder,
            weights,
            family=source.family.name,
            release=release,
            architecture=asdict(source.architecture),
            progress=lambda done: progress(done, size),
        )
        for name, data in _description(source.checkpoint):
            (folder / name).write_bytes(data)
    counts: Counter[str] = Counter()
    for weight in weights:
        counts[weight.dtype] += math.prod(weight.shape)
    return size, counts


def _weight(source: ModelSource, native: NativeModel, name: str, dtype: str | None) -> NewWeight:
    shape, stored = source.shapes[name], source.dtypes[name]
    kept, size_bytes = native.kept(name, stored, shape, dtype)

    def pack() -> npt.NDArray[np.uint8]:
        weight = source.read(name)
        packed = native.pack(name, weight.dtype, shape, weight.data, dtype)
        source.release(name)
        return packed

    return NewWeight(name, kept, shape, size_bytes, pack)


def _description(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    """What a model says of itself, as files."""
    if isinstance(checkpoint, GGUFCheckpoint):
        yield GGUF_FILE, checkpoint.without_tensors()
        return
    for file in sorted(checkpoint.path.iterdir()):
        if file.name.startswith(".") or file.name.endswith(_INDEX_SUFFIX):
            continue
        kept = file.suffix in _KEPT_SUFFIXES and file.is_file()
        if kept and file.stat().st_size <= _MAX_FILE_BYTES:
            yield file.name, file.read_bytes()
