"""A source's weights as the tensors of another layout, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glimmer.errors import InvalidParameterError
from glimmer.families.weight_map import Layout, RowRange
from glimmer.model_source import ModelSource
from glimmer.native import physical_cores
from glimmer.quantization import dequantize, quantize

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
TypeOf = Callable[[str, tuple[int, ...], str], str]
"""Canonical name, shape and stored type of a weight -> the type that it shall have."""

_CHUNK_WEIGHTS = 1 << 22  # that a thread converts at a time


@dataclass(frozen=True, slots=True)
class RelaidTensor:
    """A tensor of the new layout, and the weights that make it up."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, tuple[RowRange, ...] | None], ...]
    """Canonical names, each with the rows of the tensor that are its; None for all."""

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else self.shape[0]


class Relayout:
    """Weights of ``source``, all or those of ``names``, as ``layout`` names and cuts them.

    Raises:
        InvalidParameterError: the layout has no place for one of them.
    """

    def __init__(
        self,
        source: ModelSource,
        layout: Layout,
        type_of: TypeOf,
        *,
        names: Iterable[str] | None = None,
        copies: bool = True,
    ) -> None:
        self._source = source
        self.tensors = self._find(layout, type_of, source.shapes if names is None else names)
        if copies:
            self.tensors += tuple(
                self._tensor(name, [(canonical, None)], False, type_of)
                for name, canonical in layout.copies.items()
            )

    def read(self, tensor: RelaidTensor) -> Bytes:
        """The bytes of a tensor, ``[rows, bytes per row]``."""
        whole: Bytes | None = None
        for name, rows in tensor.parts:
            data = self._converted(name, tensor.dtype)
            if rows is None:
                return data
            if whole is None:
                whole = np.empty((tensor.num_rows, data.shape[1]), np.uint8)
            start = 0
            for first, last in rows:
                whole[first:last] = data[start : start + last - first]
                start += last - first
        assert whole is not None
        return whole

    def _find(
        self, layout: Layout, type_of: TypeOf, names: Iterable[str]
    ) -> tuple[RelaidTensor, ...]:
        source = self._source
        found: dict[str, list[tuple[str, tuple[RowRange, ...] | None]]] = {}
        stacked = set()
        for name in names:
            pieces = layout.pieces_of(name)
            if not pieces:
                raise InvalidParameterError(
                    f"The {layout.name} layout of {source.family.name} models has no place for "
                    f"{name}, so this model cannot be written in it. Use it as it is."
                )
            found.setdefault(pieces[0].tensor, []).append(
                (name, pieces[0].row_ranges(source.architecture, name))
            )
            if pieces[0].stacked:
                stacked.add(pieces[0].tensor)
        return tuple(
            self._tensor(tensor, parts, tensor in stacked, type_of)
            for tensor, parts in found.items()
        )

    def _tensor(
        self,
        name: str,
        parts: list[tuple[str, tuple[RowRange, ...] | None]],
        stacked: bool,
        type_of: TypeOf,
    ) -> RelaidTensor:
        shapes, dtypes = self._source.shapes, self._source.dtypes
        shape = shapes[parts[0][0]]
        if parts[0][1] is not None:
            height = max(max(last for _, last in rows) for _, rows in parts if rows)
            shape = (height // shape[0], *shape) if stacked else (height, *shape[1:])
        types = {type_of(part, shapes[part], dtypes[part]) for part, _ in parts}
        # Parts that are stored in different types meet in one that holds them all.
        dtype = types.pop() if len(types) == 1 else "float32"
        return RelaidTensor(name, dtype, shape, tuple(parts))

    def _converted(self, name: str, dtype: str) -> Bytes:
        """A weight's bytes as ``dtype``, ``[rows, bytes per row]``."""
        shape = self._source.shapes[name]
        rows = shape[0]
        weight = self._source.read(name)
        stored = np.ascontiguousarray(weight.data).reshape(rows, -1)
        if weight.dtype != dtype:
            columns = math.prod(shape[1:])
            stored = _by_chunks(
                stored,
                max(1, _CHUNK_WEIGHTS // columns),
                lambda part: quantize(dtype, to_floats(weight.dtype, part, columns)).reshape(
                    len(part), -1
                ),
            )
        self._source.release(name)
        return stored


def to_floats(dtype: str, rows: Bytes, columns: int) -> Floats:
    """float32 ``[rows, columns]`` of the stored ``[rows, bytes per row]``."""
    return dequantize(dtype, np.ascontiguousarray(rows).reshape(-1), (len(rows), columns))


def _by_chunks(rows: Bytes, chunk: int, work: Callable[[Bytes], Bytes]) -> Bytes:
    parts = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
    with ThreadPoolExecutor(physical_cores()) as pool:  # numpy lets go of the interpreter
        done: Bytes = np.concatenate(list(pool.map(work, parts)))
        return done
