"""What a checkpoint holds, told without reading its tensors or running it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimmer.architecture import Architecture
from glimmer.catalogue import find_file
from glimmer.checkpoints import Checkpoint, PackedCheckpoint, TensorInfo, open_checkpoint
from glimmer.errors import CheckpointError
from glimmer.loader import model_name, release_of
from glimmer.model_source import find_architecture, find_family
from glimmer.native import check_architecture
from glimmer.packed_source import open_source


@dataclass(frozen=True, slots=True)
class ModelSummary:
    path: Path
    name: str
    format: str
    family: str | None
    """None where no family recognises it; ``why_not`` says why."""
    architecture: Architecture | None
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    runnable: bool
    why_not: str | None
    """The error that loading would end with."""

    @property
    def weights_bytes_by_dtype(self) -> Mapping[str, int]:
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
        return sizes

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Of a float16 KV cache."""
        return self.architecture.kv_bytes_per_token if self.architecture else None


def format_of(checkpoint: Checkpoint) -> str:
    """What to call a checkpoint's format: a packed one has its description's."""
    return "packed" if isinstance(checkpoint, PackedCheckpoint) else checkpoint.format


def inspect(model: str | os.PathLike[str], *, family: str | None = None) -> ModelSummary:
    """Summarise a file or release; one that cannot run is summarised as far as it is understood.

    Raises:
        ModelNotFoundError, UnknownFormatError, MalformedCheckpointError: nothing can be told.
    """
    path, release = find_file(model)
    with open_checkpoint(path) as checkpoint:
        name, architecture, why_not = None, None, None
        release = release or release_of(checkpoint)
        try:
            found = find_family(checkpoint, family)
            name = found.name
            architecture = find_architecture(checkpoint, found)
            check_architecture(architecture)
            open_source(checkpoint, name)
        except CheckpointError as error:
            why_not = str(error)
        return ModelSummary(
            path=path,
            name=f"{release.title} ({release.name})" if release else model_name(checkpoint),
            format=format_of(checkpoint),
            family=name,
            architecture=architecture,
            metadata=dict(checkpoint.metadata),
            tensors=dict(checkpoint.tensors),
            runnable=why_not is None,
            why_not=why_not,
        )
