"""A checkpoint in another form: a Hugging Face folder, a GGUF file, or a packed folder.

Weights pass through one tensor at a time, from the source's file to the new one; the engine takes
no part. What a format can hold is copied bit for bit.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from glimmer.catalogue import find_file
from glimmer.checkpoints import (
    Checkpoint,
    PackedCheckpoint,
    gguf_writer,
    open_checkpoint,
    safetensors_writer,
)
from glimmer.checkpoints.atomic import new_file, new_folder
from glimmer.checkpoints.json_file import read_object
from glimmer.errors import InvalidParameterError
from glimmer.families.exporter import NO_FILES, Exporter, FolderFormat
from glimmer.families.weight_map import Layout, RowRange
from glimmer.model_source import ModelSource
from glimmer.native import physical_cores
from glimmer.packed_source import PackedSource
from glimmer.packing import write_packed_folder
from glimmer.quantization import SCHEMES, dequantize, quantize
from glimmer.quantization.official_rows import quantize_rows
from glimmer.tokenizers import Tokenizer

Bytes = npt.NDArray[np.uint8]
Format = Literal["hf", "gguf", "packed"]
FloatType = Literal["float32", "float16", "bfloat16"]
Quantization = Literal["int8", "int4", "q8_0", "q4_0", "q4_k"]
Progress = Callable[[int, int], None]
"""Bytes written since the last call, and bytes in all."""

_FLOATS = get_args(FloatType)
_ROW_BITS = {"int8": 8, "int4": 4}
_CHUNK_WEIGHTS = 1 << 22  # that a thread converts at a time
# GGUF's general.file_type by what most weights are stored as (enum llama_ftype).
_FILE_TYPES = {
    "float32": 0, "float16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9,
    "q4_k": 14, "q5_k": 16, "q6_k": 18, "bfloat16": 32,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    path: Path
    size_bytes: int
    """Of the weights."""
    dtypes: Mapping[str, int]
    """Number of weights by the type they were written in."""


def convert(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: Format,
    *,
    dtype: FloatType | None = None,
    family: str | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Written:
    """Write a model in another layout. Float weights keep their type unless ``dtype`` is given.

    "hf" is a folder that transformers and vLLM run without remote code (ChatGLM-6B, which they do
    not know, keeps its official names). It holds floats: quantised weights become ``dtype``,
    float16 by default. "gguf" keeps them as they are. "packed" is a folder for Glimmer alone, whose
    weights are mapped as they lie, so that a load takes no time.

    Raises:
        InvalidParameterError: the format cannot hold this network, or ``target`` exists.
        OutputError: the disk is full or cannot be written; nothing is left behind.
        CheckpointError: the source is at fault.
    """
    _check_choice("to", to, get_args(Format))
    if dtype is not None:
        _check_choice("dtype", dtype, _FLOATS)
    path, release = find_file(model)
    with open_checkpoint(path) as checkpoint:
        source = _source(checkpoint, family)
        if to == "packed":
            size, dtypes = write_packed_folder(
                source,
                Path(target),
                release=release.name if release is not None else None,
                dtype=dtype,
                overwrite=overwrite,
                progress=progress,
            )
            return Written(Path(target), size, dtypes)
        export = _Export(source, Path(target), overwrite, progress)
        if to == "gguf":
            return export.gguf(lambda _name, _shape, stored: dtype or stored)
        return export.folder(
            export.exporter.folder,
            lambda _name, _shape, stored: dtype or (stored if stored in _FLOATS else "float16"),
        )


def quantize_model(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: Quantization,
    *,
    family: str | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Written:
    """Write a model with every matrix quantised.

    int8 and int4 give a folder as ChatGLM's own ``quantize`` does, one scale per row; the others
    give a GGUF file. Raises as ``convert``.
    """
    _check_choice("to", to, get_args(Quantization))
    path, _ = find_file(model)
    with open_checkpoint(path) as checkpoint:
        source = _source(checkpoint, family)
        export = _Export(source, Path(target), overwrite, progress)
        if to not in _ROW_BITS:
            return export.gguf(lambda name, shape, _stored: _block_type(to, name, shape))
        if export.exporter.integers is None:
            raise InvalidParameterError(
                f"{source.family.name} models have no official {to} form. Write q8_0, q4_0 or q4_k "
                "(GGUF) instead."
            )
        return export.folder(
            export.exporter.integers,
            lambda _name, _shape, stored: stored if stored in _FLOATS else "float16",
            bits=_ROW_BITS[to],
        )


def _source(checkpoint: Checkpoint, family: str | None) -> ModelSource:
    if isinstance(checkpoint, PackedCheckpoint):
        raise PackedSource.refusal(checkpoint)
    return ModelSource(checkpoint, family)


def _block_type(to: str, name: str, shape: tuple[int, ...]) -> str:
    """What a matrix becomes in a file of ``to``."""
    if to != "q4_k":
        return to
    # The two matrices that touch the vocabulary feel four bits most; and K-blocks are long.
    if name in ("head.weight", "embedding.weight"):
        return "q8_0"
    return to if shape[-1] % SCHEMES[to].block_size == 0 else "q4_0"


TypeOf = Callable[[str, tuple[int, ...], str], str]
"""Canonical name, shape and stored type of a weight -> the type to write."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor to be written, and the weights that make it up."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, tuple[RowRange, ...] | None], ...]
    """Canonical names, each with the rows of the tensor that are its; None for all."""

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else self.shape[0]


class _Export:
    def __init__(
        self, source: ModelSource, target: Path, overwrite: bool, progress: Progress
    ) -> None:
        if source.family.exporter is None:
            raise InvalidParameterError(
                f"Models of the {source.family.name} family are not written in other formats."
            )
        self.exporter: Exporter = source.family.exporter
        self._source = source
        self._target = target
        self._overwrite = overwrite
        self._progress = progress
        family, checkpoint = source.family, source.checkpoint
        self._tokenizer: Tokenizer | None = (
            family.tokenizer(checkpoint) if family.has_tokenizer(checkpoint) else None
        )

    def gguf(self, type_of: TypeOf) -> Written:
        def ggml_type(name: str, shape: tuple[int, ...], stored: str) -> str:
            # llama.cpp wants all that is no matrix, and the router, as float32.
            if len(shape) == 1 or name.endswith("router.weight"):
                return "float32"
            return type_of(name, shape, stored)

        source = self._source
        tensors = self._tensors(self._layout("gguf"), ggml_type)
        weights: Counter[str] = Counter()
        for tensor in tensors:
            weights[tensor.dtype] += math.prod(tensor.shape)
        metadata: dict[str, gguf_writer.GGUFValue] = {
            "general.architecture": self.exporter.gguf_architecture,
            "general.type": "model",
            "general.name": source.name,
            "general.file_type": _FILE_TYPES[weights.most_common(1)[0][0]],
            "general.quantization_version": 2,
            **self.exporter.gguf_keys(source.architecture),
        }
        if self._tokenizer is not None:
            metadata |= self.exporter.gguf_tokenizer(
                self._tokenizer, source.architecture.vocab_size
            )
            if (template := self._chat_template()) is not None:
                metadata["tokenizer.chat_template"] = template
        new = [gguf_writer.NewTensor(t.name, t.dtype, t.shape, self._reader(t)) for t in tensors]
        size = gguf_writer.gguf_size(metadata, new)
        with new_file(self._target, size_bytes=size, overwrite=self._overwrite) as stream:
            gguf_writer.write_gguf(stream, metadata, new, self._counting(size))
        return Written(self._target, size, weights)

    def folder(self, form: FolderFormat, type_of: TypeOf, bits: int | None = None) -> Written:
        layout = self._layout(form.layout)
        tensors = self._tensors(layout, type_of)
        weights: Counter[str] = Counter()
        new: list[safetensors_writer.NewTensor] = []
        for tensor in tensors:
            if bits is not None and self._takes_integers(tensor):
                new += self._integers(tensor, bits, f"{layout.row_scale}")
                weights[f"int{bits}"] += math.prod(tensor.shape)
            else:
                new.append(
                    safetensors_writer.NewTensor(
                        tensor.name, tensor.dtype, tensor.shape, self._reader(tensor)
                    )
                )
                weights[tensor.dtype] += math.prod(tensor.shape)
        floats = Counter({t: weights[t] for t in _FLOATS})
        config = form.config(
            self._source.architecture,
            dtype=floats.most_common(1)[0][0],
            eos_token_ids=self._eos_token_ids(),
            pad_token_id=self._pad_token_id(),
        )
        if bits is not None:
            config |= {"quantization_bit": bits, "quantization_embeddings": False}
        files = NO_FILES
        if self._tokenizer is not None:
            files = form.tokenizer_files(self._tokenizer, self._chat_template())
        size = sum(tensor.size_bytes for tensor in new)
        with new_folder(self._target, size_bytes=size, overwrite=self._overwrite) as folder:
            safetensors_writer.write_safetensors(folder, new, self._counting(size))
            _write_json(folder / "config.json", config)
            for name, data in files.items():
                (folder / name).write_bytes(data)
            for name in ("generation_config.json", "LICENSE", "MODEL_LICENSE"):
                if (file := self._source.checkpoint.file(name)) is not None:
                    (folder / name).write_bytes(file.read_bytes())
        return Written(self._target, size, weights)

    def _layout(self, name: str) -> Layout:
        layout = self._source.family.weight_map.layout(name)
        assert layout is not None, f"the exporter names a layout {name!r} that is in no table"
        return layout

    def _tensors(self, layout: Layout, type_of: TypeOf) -> list[_Tensor]:
        source = self._source
        found: dict[str, list[tuple[str, tuple[RowRange, ...] | None]]] = {}
        stacked = set()
        for name in source.shapes:
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
        for tensor, name in layout.copies.items():
            found[tensor] = [(name, None)]
        tensors = []
        for tensor, parts in found.items():
            shape = source.shapes[parts[0][0]]
            if parts[0][1] is not None:
                height = max(rows[-1][1] for _, rows in parts if rows)
                shape = (height // shape[0], *shape) if tensor in stacked else (height, *shape[1:])
            types = {type_of(n, source.shapes[n], source.dtypes[n]) for n, _ in parts}
            # Parts that are stored in different types meet in one that holds them all.
            dtype = types.pop() if len(types) == 1 else "float32"
            tensors.append(_Tensor(tensor, dtype, shape, tuple(parts)))
        return tensors

    def _reader(self, tensor: _Tensor) -> Callable[[], Bytes]:
        return lambda: self._assemble(tensor)

    def _assemble(self, tensor: _Tensor) -> Bytes:
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
                lambda part: quantize(dtype, _floats(weight.dtype, part, columns)).reshape(
                    len(part), -1
                ),
            )
        self._source.release(name)
        return stored

    def _takes_integers(self, tensor: _Tensor) -> bool:
        if len(tensor.shape) != 2:
            return False
        return not any(name in self.exporter.unquantized for name, _ in tensor.parts)

    def _integers(
        self, tensor: _Tensor, bits: int, scale_suffix: str
    ) -> list[safetensors_writer.NewTensor]:
        """The tensor as integers, and its scales: one for each row."""
        rows, columns = tensor.shape
        scales: list[Bytes] = []

        def integers() -> Bytes:
            floats = _floats(tensor.dtype, self._assemble(tensor), columns)
            data, row_scales = quantize_rows(floats, bits)
            scales.append(np.ascontiguousarray(row_scales, "<f2").view(np.uint8))
            return data.view(np.uint8)

        width = columns * bits // 8
        return [
            safetensors_writer.NewTensor(tensor.name, "int8", (rows, width), integers),
            safetensors_writer.NewTensor(
                tensor.name + scale_suffix, "float16", (rows,), lambda: scales.pop()
            ),
        ]

    def _chat_template(self) -> str | None:
        """The source's own, in Jinja; else the family's."""
        checkpoint = self._source.checkpoint
        own = checkpoint.metadata.get("tokenizer.chat_template")
        if own is None and (file := checkpoint.file("chat_template.jinja")) is not None:
            own = file.read_text(encoding="utf-8")
        if own is None and (file := checkpoint.file("tokenizer_config.json")) is not None:
            own = read_object(file).get("chat_template")
        return own if isinstance(own, str) else self.exporter.chat_template

    def _eos_token_ids(self) -> list[int]:
        if self._tokenizer is not None:
            return list(self._source.family.stop_token_ids(self._tokenizer))
        given = self._source.checkpoint.metadata.get("eos_token_id")
        if isinstance(given, list):
            return given
        return [given] if isinstance(given, int) else []

    def _pad_token_id(self) -> int | None:
        given = self._source.checkpoint.metadata.get("pad_token_id")
        if isinstance(given, int):
            return given
        return next(iter(self._eos_token_ids()), None)

    def _counting(self, total: int) -> Callable[[int], None]:
        return lambda done: self._progress(done, total)


def _floats(dtype: str, rows: Bytes, columns: int) -> npt.NDArray[np.float32]:
    return dequantize(dtype, np.ascontiguousarray(rows).reshape(-1), (len(rows), columns))


def _by_chunks(rows: Bytes, chunk: int, work: Callable[[Bytes], Bytes]) -> Bytes:
    parts = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
    with ThreadPoolExecutor(physical_cores()) as pool:  # numpy lets go of the interpreter
        done: Bytes = np.concatenate(list(pool.map(work, parts)))
        return done


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidParameterError(
            f"{name} must be one of {', '.join(allowed)}, but it is {value!r}."
        )
