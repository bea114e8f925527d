"""An open checkpoint as a network's weights: canonical names, whatever the file calls and cuts.

What loading, converting and measuring share. Tensors are read one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from glimmer.architecture import Architecture
from glimmer.checkpoints import Checkpoint, PackedCheckpoint, TensorInfo
from glimmer.errors import (
    InvalidParameterError,
    MalformedCheckpointError,
    UnsupportedTensorTypeError,
)
from glimmer.families import Family, recognise
from glimmer.families.weight_map import Layout, PrefixEncoder, RowRange
from glimmer.native import NativeModel
from glimmer.quantization import SCHEMES
from glimmer.quantization.official_rows import rows_to_blocks
from glimmer.trained_prefix import TrainedPrefix

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class StoredWeight:
    """``data`` is uint8 of any shape, rows in order, as ``dtype`` stores them."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes


@dataclass(frozen=True, slots=True)
class _Location:
    tensor: TensorInfo
    rows: tuple[RowRange, ...] | None
    dtype: str
    """Of the weight as it is read."""
    scale: TensorInfo | None = None
    """One scale per row, where the tensor holds integers of ``bits``."""
    bits: int = 0


def find_family(checkpoint: Checkpoint, name: str | None = None) -> Family:
    """The family of a checkpoint, or the one that is named; raises as ``recognise``."""
    if name is None and isinstance(checkpoint, PackedCheckpoint):
        name = checkpoint.family
    return recognise(checkpoint, name)


def find_architecture(checkpoint: Checkpoint, family: Family) -> Architecture:
    """The network of a checkpoint. Raises CheckpointError where its numbers make none."""
    if not isinstance(checkpoint, PackedCheckpoint):
        return family.architecture(checkpoint)
    try:
        return Architecture.from_values(checkpoint.architecture)
    except InvalidParameterError as error:
        raise MalformedCheckpointError(
            f"{checkpoint.path}: {error} The file is damaged, or of another version of Glimmer: "
            "convert the model again."
        ) from error


class ModelSource:
    """A checkpoint, the family that it belongs to, and its weights by canonical name.

    Raises:
        UnknownFamilyError: no family, or more than one, recognises it.
        MalformedCheckpointError: a weight is missing or has another shape.
        UnsupportedTensorTypeError: a weight is stored in a type that the engine does not run.
        UnsupportedArchitectureError: the config asks for what no published model has.
    """

    def __init__(self, checkpoint: Checkpoint, family: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.family: Family = find_family(checkpoint, family)
        self.architecture: Architecture = find_architecture(checkpoint, self.family)
        self._shapes = self._checked_shapes()
        self._find_weights()

    def _find_weights(self) -> None:
        self.layout: Layout = self._find_layout()
        self._locations = {
            name: location
            for name, shape in self._shapes.items()
            if (location := self._locate(name, shape)) is not None
        }

    @property
    def name(self) -> str:
        """What the model calls itself, else the name of its file or folder."""
        metadata = self.checkpoint.metadata
        for key in ("general.name", "_name_or_path"):
            if isinstance(said := metadata.get(key), str) and said:
                return said
        return self.checkpoint.path.name

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    @property
    def dtypes(self) -> Mapping[str, str]:
        """How each weight is stored once it is read."""
        return {
            name: self._locations[name].dtype if name in self._locations else "float32"
            for name in self._shapes
        }

    @property
    def unused_tensors(self) -> frozenset[str]:
        """Tensors of the file that are no part of the network."""
        used = {place.tensor.name for place in self._locations.values()}
        used |= {place.scale.name for place in self._locations.values() if place.scale}
        if self.architecture.prefix_length and (encoder := self.layout.prefix_encoder):
            used |= {n for n in self.checkpoint.tensors if n.startswith(_tensors_of(encoder))}
        return frozenset(self.checkpoint.tensors.keys() - used)

    def load_into(self, native: NativeModel, name: str, target: str | None) -> None:
        """Give one weight to the engine, converted to ``target`` if given."""
        weight = self.read(name)
        native.load(name, weight.dtype, weight.shape, weight.data, target)
        self.release(name)

    def loaded_bytes(self, native: NativeModel, target: str | None) -> int:
        """Memory of all weights once they are loaded."""
        return sum(
            native.kept(name, dtype, self._shapes[name], target)[1]
            for name, dtype in self.dtypes.items()
        )

    def read(self, name: str) -> StoredWeight:
        """One weight: a view of the file where that is possible, else a copy."""
        shape = self._shapes[name]
        if name not in self._locations:
            return self._read_prefix(name)
        place = self._locations[name]
        data = _rows_of(self.checkpoint.read(place.tensor.name), place.tensor, place.rows)
        if place.scale is None:
            return StoredWeight(place.dtype, shape, data)
        scales = _rows_of(self.checkpoint.read(place.scale.name), place.scale, place.rows)
        dtype, blocks = rows_to_blocks(
            np.ascontiguousarray(data).view(np.int8), scales.view("<f2").reshape(-1), shape,
            place.bits,
        )  # fmt: skip
        assert dtype == place.dtype
        return StoredWeight(dtype, shape, blocks)

    def release(self, name: str) -> None:
        """Let the operating system drop the pages that held the weight."""
        if name in self._locations:
            self.checkpoint.release(self._locations[name].tensor.name)

    def _checked_shapes(self) -> Mapping[str, tuple[int, ...]]:
        a, path = self.architecture, self.checkpoint.path
        # Said before the layers are counted out: a damaged number may claim billions of them.
        most = len(self.checkpoint.tensors)
        experts = a.experts.num_experts if a.experts else 0
        if a.num_layers > most or experts > 1 << 16:
            raise MalformedCheckpointError(
                f"{path} claims {a.num_layers} layers"
                + (f" of {experts} experts" if experts else "")
                + f", but it holds {most} tensors in all. The file is damaged or incomplete: "
                "download or convert it again."
            )
        return a.weight_shapes()

    def _find_layout(self) -> Layout:
        container = "gguf" if self.checkpoint.format == "gguf" else "folder"
        looked_for = []
        for layout in self.family.weight_map.candidates(container):
            (embedding,) = layout.pieces_of("embedding.weight")
            if embedding.tensor in self.checkpoint.tensors:
                return layout
            looked_for.append(f"{embedding.tensor!r} ({layout.name} layout)")
        raise MalformedCheckpointError(
            f"{self.checkpoint.path} has no tensor {' or '.join(looked_for) or 'that fits'}, so it "
            f"does not hold the weights of a {self.family.name} model. The file is incomplete, or "
            "of another family: download or convert it again, or name the family (family= or "
            "--family)."
        )

    @cached_property
    def _rows_in_file(self) -> Mapping[str, int]:
        """Rows of each tensor that is made of several weights."""
        rows: dict[str, int] = {}
        for name in self._shapes:
            for piece in self.layout.pieces_of(name):
                if ranges := piece.row_ranges(self.architecture, name):
                    rows[piece.tensor] = max(rows.get(piece.tensor, 0), ranges[-1][1])
        return rows

    def _locate(self, name: str, shape: tuple[int, ...]) -> _Location | None:
        """None for a weight that is computed: a trained prefix."""
        path, tensors = self.checkpoint.path, self.checkpoint.tensors
        pieces = self.layout.pieces_of(name)
        if not pieces:
            if self._prefix is None or "prefix_" not in name:
                raise MalformedCheckpointError(
                    f"{path}: the {self.layout.name} layout of {self.family.name} models has no "
                    f"place for {name}, which the config asks for."
                )
            return None
        piece = next((piece for piece in pieces if piece.tensor in tensors), None)
        if piece is None:
            raise MalformedCheckpointError(
                f"{path} has no tensor {pieces[0].tensor!r} ({name}), which a {self.family.name} "
                f"model of {self.architecture.num_layers} layers needs. The file is incomplete: "
                "download or convert it again."
            )
        tensor = tensors[piece.tensor]
        rows = piece.row_ranges(self.architecture, name)
        file_rows = shape[0] if rows is None else self._rows_in_file[piece.tensor]
        expected = (file_rows, *shape[1:])
        if piece.stacked:
            expected = (file_rows // shape[0], *shape)
        scale = tensors.get(piece.tensor + self.layout.row_scale) if self.layout.row_scale else None
        if scale is not None and len(shape) == 2:
            return self._locate_integers(tensor, scale, rows, expected)
        if tensor.shape != expected:
            raise MalformedCheckpointError(
                f"{path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, but the network "
                f"in its config needs {list(expected)}."
            )
        if tensor.dtype not in SCHEMES:
            raise UnsupportedTensorTypeError(
                f"{path}: tensor {tensor.name!r} is stored as {tensor.dtype}, which this version "
                f"does not run; supported: {', '.join(SCHEMES)}. Use a file quantised to one of "
                "these."
            )
        return _Location(tensor, rows, tensor.dtype)

    def _locate_integers(
        self,
        tensor: TensorInfo,
        scale: TensorInfo,
        rows: tuple[RowRange, ...] | None,
        expected: tuple[int, ...],
    ) -> _Location:
        height, width = expected
        bits = next((b for b in (8, 4) if tensor.shape == (height, width * b // 8)), 0)
        if bits == 0 or tensor.dtype != "int8" or width % 32:
            raise MalformedCheckpointError(
                f"{self.checkpoint.path}: tensor {tensor.name!r} is {tensor.dtype} "
                f"{list(tensor.shape)}, but with {scale.name!r} beside it it must be int8 "
                f"{[height, width]} (8 bits) or {[height, width // 2]} (4 bits), with rows of a "
                "multiple of 32."
            )
        if scale.shape != (height,) or scale.dtype != "float16":
            raise MalformedCheckpointError(
                f"{self.checkpoint.path}: tensor {scale.name!r} is {scale.dtype} "
                f"{list(scale.shape)}, but it must be float16 [{height}], one scale per row."
            )
        return _Location(tensor, rows, {8: "q8_0", 4: "q4_0"}[bits], scale, bits)

    @cached_property
    def _prefix(self) -> TrainedPrefix | None:
        encoder, a = self.layout.prefix_encoder, self.architecture
        if encoder is None or a.prefix_length == 0:
            return None
        return TrainedPrefix(
            self.checkpoint,
            encoder,
            length=a.prefix_length,
            num_layers=a.num_layers,
            kv_width=a.num_kv_heads * a.head_dim,
        )

    def _read_prefix(self, name: str) -> StoredWeight:
        layer = int(name.split(".")[1])
        assert self._prefix is not None
        values = self._prefix.values[:, layer, 1 if "values" in name else 0]
        return StoredWeight(
            "float32", values.shape, np.ascontiguousarray(values, "<f4").view(np.uint8)
        )


def _rows_of(data: Bytes, tensor: TensorInfo, rows: tuple[RowRange, ...] | None) -> Bytes:
    if rows is None:
        return data
    count = math.prod(tensor.shape[:-1]) if len(tensor.shape) > 1 else tensor.shape[0]
    by_row = data.reshape(count, -1)
    if len(rows) == 1:
        return by_row[slice(*rows[0])]
    return np.concatenate([by_row[slice(*bounds)] for bounds in rows])


def _tensors_of(encoder: PrefixEncoder) -> tuple[str, ...]:
    return (encoder.embedding, encoder.first, encoder.second)
