"""A model and an adapter become one model, written in a form of others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from glimmer.adapters import Adapter, read_adapter
from glimmer.catalogue import find_file
from glimmer.checkpoints import Checkpoint, PackedCheckpoint, open_checkpoint
from glimmer.checkpoints.safetensors_writer import NewTensor
from glimmer.errors import InvalidParameterError, MalformedCheckpointError
from glimmer.export import Addition, FloatType, Progress, Written, write_model
from glimmer.families.weight_map import PrefixEncoder
from glimmer.model_source import ModelSource, StoredWeight
from glimmer.packed_source import PackedSource
from glimmer.quantization import SCHEMES, dequantize

MergedForm = Literal["hf", "official", "gguf"]


class MergedSource(ModelSource):
    """The weights of a checkpoint with an adapter's low-rank products added, in float32.

    ``dtypes`` are those of the checkpoint: what a weight was stored as tells what it shall become.
    Where that is a form that is read here and not written, such as q6_k, it is q8_0.
    """

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter, family: str | None = None) -> None:
        """Raises as ``ModelSource``."""
        super().__init__(checkpoint, family)
        self._adapter_path = adapter.path
        self._low_rank = {f"{name}.weight": part for name, part in adapter.low_rank.items()}
        assert self._low_rank.keys() <= self.shapes.keys(), "the adapter was read for this network"

    @property
    def dtypes(self) -> Mapping[str, str]:
        return {
            name: "q8_0" if name in self._low_rank and not SCHEMES[dtype].is_written else dtype
            for name, dtype in super().dtypes.items()
        }

    def read(self, name: str) -> StoredWeight:
        """Raises MalformedCheckpointError: the sum is beyond float32."""
        weight = super().read(name)
        if name not in self._low_rank:
            return weight
        data = np.ascontiguousarray(weight.data).reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            merged = dequantize(weight.dtype, data, weight.shape) + self._low_rank[name].delta()
        if not np.isfinite(merged).all():
            raise MalformedCheckpointError(
                f"{self._adapter_path}: with the adapter, {name} holds NaN or values beyond "
                "float32. The training has failed, or the adapter belongs to another model."
            )
        return StoredWeight("float32", weight.shape, merged.astype("<f4").view(np.uint8))


def merge(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: MergedForm | None = None,
    dtype: FloatType | None = None,
    family: str | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Written:
    """Write ``base`` with ``adapter`` as a new model.

    LoRA: in any form, "hf" unless ``to`` is given; the sum is made in float32 and stored in the
    type of the base's weight, or in ``dtype``. A prefix: in the official layout, which alone has a
    place for it; it is written as it acts, without the layers that may have made it.

    Raises:
        InvalidParameterError: the form cannot hold the model, or ``target`` exists.
        OutputError: the disk is full or cannot be written; nothing is left behind.
        CheckpointError: base or adapter is at fault, or they do not fit.
    """
    if to is not None and to not in get_args(MergedForm):
        raise InvalidParameterError(
            f"to must be one of {', '.join(get_args(MergedForm))}, but it is {to!r}."
        )
    path, _ = find_file(base)
    with open_checkpoint(path) as checkpoint:
        if isinstance(checkpoint, PackedCheckpoint):
            raise PackedSource.refusal(checkpoint)
        plain = ModelSource(checkpoint, family)
        found = read_adapter(adapter, plain.family, plain.architecture)
        found.check_finite()
        if not found.changes_anything:
            raise InvalidParameterError(
                f"{found.path} changes nothing: all of its B, or A, are zero. There is nothing to "
                "merge; was it saved before the training began?"
            )
        source = MergedSource(checkpoint, found, family)
        more = None
        if found.prefix is not None:
            if to not in (None, "official"):
                raise InvalidParameterError(
                    f"A model with a trained prefix cannot be written as {to}: only the official "
                    "layout has a place for it. Leave --to out."
                )
            to, more = "official", _prefix_tensors(found, _encoder(source))
        return write_model(
            source,
            Path(target),
            to or "hf",
            dtype=dtype,
            overwrite=overwrite,
            progress=progress,
            more=more,
        )


def _encoder(source: ModelSource) -> PrefixEncoder:
    layout = source.family.weight_map.layout("official")
    if layout is None or layout.prefix_encoder is None:
        raise InvalidParameterError(
            f"{source.family.name} models have no official layout with a place for a prefix. Use "
            "the adapter beside the model instead."
        )
    return layout.prefix_encoder


def _prefix_tensors(adapter: Adapter, encoder: PrefixEncoder) -> Addition:
    assert adapter.prefix is not None
    flat = np.ascontiguousarray(adapter.prefix.reshape(adapter.prefix_length, -1), "<f4")
    config: Mapping[str, object] = {
        "pre_seq_len": adapter.prefix_length,
        "prefix_projection": False,
    }
    tensor = NewTensor(encoder.embedding, "float32", flat.shape, lambda: flat.view(np.uint8))
    return Addition([tensor], config)
