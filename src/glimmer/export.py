"""A checkpoint in another form: a Hugging Face folder, a GGUF file, or a packed folder.

Weights pass through one tensor at a time, from the source's file to the new one; the engine takes
no part. What a format can hold is copied bit for bit.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from glimmer.families.weight_map import Layout
from glimmer.model_source import ModelSource
from glimmer.packed_source import PackedSource
from glimmer.packing import write_packed_folder
from glimmer.quantization import SCHEMES
from glimmer.quantization.official_rows import quantize_rows
from glimmer.relayout import RelaidTensor, Relayout, TypeOf, to_floats
from glimmer.tokenizers import Tokenizer

Bytes = npt.NDArray[np.uint8]
Format = Literal["hf", "gguf", "packed"]
FloatType = Literal["float32", "float16", "bfloat16"]
Quantization = Literal["int8", "int4", "q8_0", "q4_0", "q4_k"]
Progress = Callable[[int, int], None]
"""Bytes written since the last call, and bytes in all."""

_FLOATS = get_args(FloatType)
_ROW_BITS = {"int8": 8, "int4": 4}
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


@dataclass(frozen=True, slots=True)
class Addition:
    """What a folder holds beyond the network's own weights and numbers."""

    tensors: Sequence[safetensors_writer.NewTensor]
    config: Mapping[str, Any]


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
        return write_model(
            source, Path(target), to, dtype=dtype, overwrite=overwrite, progress=progress
        )


def write_model(
    source: ModelSource,
    target: Path,
    to: Literal["hf", "official", "gguf"],
    *,
    dtype: FloatType | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
    more: Addition | None = None,
) -> Written:
    """``convert``, of any source of weights; "official" is the layout of the official code.

    A folder gets ``more`` besides. Raises as ``convert``.
    """
    export = _Export(source, target, overwrite, progress)
    if to == "gguf":
        assert more is None, "a GGUF file has no place for it"
        return export.gguf(lambda _name, _shape, stored: dtype or stored)
    form = export.exporter.folder if to == "hf" else export.official_form()
    return export.folder(
        form,
        lambda _name, _shape, stored: dtype or (stored if stored in _FLOATS else "float16"),
        more=more,
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


def eos_token_ids(source: ModelSource, tokenizer: Tokenizer | None) -> list[int]:
    """The ids that end an answer, which a checkpoint without a tokenizer may tell itself."""
    if tokenizer is not None:
        return list(source.family.stop_token_ids(tokenizer))
    given = source.checkpoint.metadata.get("eos_token_id")
    if isinstance(given, list):
        return given
    return [given] if isinstance(given, int) else []


def pad_token_id(source: ModelSource, eos: Sequence[int]) -> int | None:
    given = source.checkpoint.metadata.get("pad_token_id")
    return given if isinstance(given, int) else next(iter(eos), None)


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
        relayout = Relayout(source, self._layout("gguf"), ggml_type)
        tensors = relayout.tensors
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
        new = [
            gguf_writer.NewTensor(t.name, t.dtype, t.shape, partial(relayout.read, t))
            for t in tensors
        ]
        size = gguf_writer.gguf_size(metadata, new)
        with new_file(self._target, size_bytes=size, overwrite=self._overwrite) as stream:
            gguf_writer.write_gguf(stream, metadata, new, self._counting(size))
        return Written(self._target, size, weights)

    def official_form(self) -> FolderFormat:
        """Raises InvalidParameterError where there is none."""
        for form in (self.exporter.folder, self.exporter.integers):
            if form is not None and form.layout == "official":
                return form
        raise InvalidParameterError(
            f"{self._source.family.name} models are not written in the official code's layout. "
            "Write hf or gguf instead."
        )

    def folder(
        self,
        form: FolderFormat,
        type_of: TypeOf,
        bits: int | None = None,
        more: Addition | None = None,
    ) -> Written:
        layout = self._layout(form.layout)
        relayout = Relayout(self._source, layout, type_of)
        weights: Counter[str] = Counter()
        new: list[safetensors_writer.NewTensor] = []
        for tensor in relayout.tensors:
            if bits is not None and self._takes_integers(tensor):
                new += self._integers(relayout, tensor, bits, f"{layout.row_scale}")
                weights[f"int{bits}"] += math.prod(tensor.shape)
            else:
                new.append(
                    safetensors_writer.NewTensor(
                        tensor.name, tensor.dtype, tensor.shape, partial(relayout.read, tensor)
                    )
                )
                weights[tensor.dtype] += math.prod(tensor.shape)
        floats = Counter({t: weights[t] for t in _FLOATS})
        config = form.config(
            self._source.architecture,
            dtype=floats.most_common(1)[0][0],
            eos_token_ids=(ends := eos_token_ids(self._source, self._tokenizer)),
            pad_token_id=pad_token_id(self._source, ends),
        )
        if bits is not None:
            config |= {"quantization_bit": bits, "quantization_embeddings": False}
        if more is not None:
            new += more.tensors
            config |= more.config
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

    def _takes_integers(self, tensor: RelaidTensor) -> bool:
        if len(tensor.shape) != 2:
            return False
        return not any(name in self.exporter.unquantized for name, _ in tensor.parts)

    def _integers(
        self, relayout: Relayout, tensor: RelaidTensor, bits: int, scale_suffix: str
    ) -> list[safetensors_writer.NewTensor]:
        """The tensor as integers, and its scales: one for each row."""
        rows, columns = tensor.shape
        scales: list[Bytes] = []

        def integers() -> Bytes:
            floats = to_floats(tensor.dtype, relayout.read(tensor), columns)
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
        own = own_chat_template(self._source.checkpoint)
        return self.exporter.chat_template if own is None else own

    def _counting(self, total: int) -> Callable[[int], None]:
        return lambda done: self._progress(done, total)


def own_chat_template(checkpoint: Checkpoint) -> str | None:
    """The chat template that came with the files, in Jinja; None if there is none."""
    own = checkpoint.metadata.get("tokenizer.chat_template")
    if own is None and (file := checkpoint.file("chat_template.jinja")) is not None:
        own = file.read_text(encoding="utf-8")
    if own is None and (file := checkpoint.file("tokenizer_config.json")) is not None:
        own = read_object(file).get("chat_template")
    return own if isinstance(own, str) else None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidParameterError(
            f"{name} must be one of {', '.join(allowed)}, but it is {value!r}."
        )
