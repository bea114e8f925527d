"""A packed folder: a network's weights as the kernels read them, to be mapped and not loaded.

``packed.safetensors`` holds every weight under its canonical name as U8 ``[bytes]``, padded with
zeros to a multiple of ``PACKED_ALIGNMENT``; its data begins on a page. Its metadata, all text:

    format           "glimmer-packed"
    layout_version   version of the packed form: another one's bytes mean something else
    family           the model's family
    release          the release that it was made of; absent where it is none
    architecture     JSON: the fields of ``Architecture``
    weights          JSON: by name [type, shape, bytes without the padding]

Beside it lies what the model says of itself: ``metadata.gguf``, a GGUF file without tensors, or
config.json and the tokenizer's files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from glimmer.checkpoints import safetensors_writer
from glimmer.checkpoints.checkpoint import Checkpoint, TensorInfo
from glimmer.checkpoints.folder import ConfigCheckpoint
from glimmer.checkpoints.gguf import GGUFCheckpoint
from glimmer.checkpoints.json_file import parse_object
from glimmer.checkpoints.safetensors import SafetensorsFile
from glimmer.closing import ClosesAtExit
from glimmer.errors import MalformedCheckpointError, UnknownFormatError
from glimmer.native import PACKED_ALIGNMENT, PACKED_LAYOUT
from glimmer.quantization import SCHEMES

WEIGHTS_FILE = "packed.safetensors"
GGUF_FILE = "metadata.gguf"
_FORMAT = "glimmer-packed"
_PAGE_BYTES = 4096


def is_packed(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).is_file()


class PackedCheckpoint(ClosesAtExit):
    """An open packed folder.

    ``tensors`` have canonical names; their bytes are what ``NativeModel.adopt`` takes, and stay
    readable when the folder is deleted or replaced by another one. ``metadata``, ``format`` and
    ``file`` are those of the files beside the weights, which a family reads.

    Raises UnknownFormatError for another layout's folder, MalformedCheckpointError for a damaged
    one, and the errors of ``GGUFCheckpoint`` and ``ConfigCheckpoint``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        file = SafetensorsFile(path / WEIGHTS_FILE)
        file.use_large_pages()
        self._file: SafetensorsFile | None = file
        header = _Header(file.path, file.metadata)
        self.family = header.text("family")
        """Name of the model's family."""
        self.made_from = header.text("release") if "release" in file.metadata else None
        """Name of the release that was packed; None where it was none."""
        self.architecture: Mapping[str, Any] = MappingProxyType(header.object("architecture"))
        """The fields of the network's ``Architecture``."""
        self._tensors = MappingProxyType(_tensors(file, header.object("weights")))
        self._description: Checkpoint = (
            GGUFCheckpoint(path / GGUF_FILE)
            if (path / GGUF_FILE).is_file()
            else ConfigCheckpoint(path)
        )

    @property
    def path(self) -> Path:
        return self._path

    @property
    def format(self) -> str:
        return self._description.format

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._description.metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def file(self, name: str) -> Path | None:
        return self._description.file(name)

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        assert self._file is not None, "the checkpoint is closed"
        return self._file.read(name)[: self._tensors[name].size_bytes]

    def release(self, name: str) -> None:
        assert self._file is not None, "the checkpoint is closed"
        self._file.release(name)

    def release_metadata(self) -> None:
        self._description.release_metadata()

    def close(self) -> None:
        """Ends reading. The mapping itself goes when the last view of it does."""
        self._file = None
        self._description.close()


@dataclass(frozen=True, slots=True)
class NewWeight:
    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    pack: Callable[[], npt.NDArray[np.uint8]]
    """Makes the packed bytes when it is their turn."""

    @property
    def padded_bytes(self) -> int:
        return self.size_bytes + -self.size_bytes % PACKED_ALIGNMENT


def write_packed(
    folder: Path,
    weights: Sequence[NewWeight],
    *,
    family: str,
    release: str | None,
    architecture: Mapping[str, Any],
    progress: Callable[[int], None] = lambda size_bytes: None,
) -> None:
    """Fill ``folder`` with the weights; what the model says of itself is the caller's to write."""
    metadata = {
        "format": _FORMAT,
        "layout_version": str(PACKED_LAYOUT),
        "family": family,
        "architecture": json.dumps(architecture),
        "weights": json.dumps({w.name: [w.dtype, w.shape, w.size_bytes] for w in weights}),
    }
    if release is not None:
        metadata["release"] = release
    tensors = [
        safetensors_writer.NewTensor(
            w.name,
            "uint8",
            (w.padded_bytes,),
            lambda w=w: _padded(w),  # type: ignore[misc]
        )
        for w in weights
    ]
    file = folder / WEIGHTS_FILE
    safetensors_writer.write_file(file, tensors, metadata, progress, alignment=_PAGE_BYTES)


def _padded(weight: NewWeight) -> npt.NDArray[np.uint8]:
    packed = weight.pack()
    assert packed.nbytes == weight.size_bytes, f"{weight.name}: {packed.nbytes} bytes"
    return np.concatenate([packed, np.zeros(weight.padded_bytes - packed.nbytes, np.uint8)])


class _Header:
    """The metadata of a packed file of the layout that runs here."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._metadata = metadata
        if metadata.get("format") != _FORMAT:
            raise UnknownFormatError(
                f"{path} holds no packed weights, as its name says: its format is "
                f"{metadata.get('format')!r:.80} and not {_FORMAT!r}. Convert the model again "
                "(glimmer convert SRC DST --to packed)."
            )
        version = self.text("layout_version")
        if version != str(PACKED_LAYOUT):
            raise UnknownFormatError(
                f"{path} is packed in layout {version:.20}, but this version of Glimmer runs "
                f"layout {PACKED_LAYOUT}. Convert the model that it was made of again: glimmer "
                f"convert SRC {path.parent} --to packed --force"
            )

    def text(self, key: str) -> str:
        value = self._metadata.get(key)
        if not isinstance(value, str):
            raise MalformedCheckpointError(
                f"{self._path}: its metadata gives {key} as {value!r:.80}, which must be text; the "
                "file is damaged: convert the model again"
            )
        return value

    def object(self, key: str) -> dict[str, Any]:
        return parse_object(self.text(key).encode(), f"{key} in the metadata of {self._path}")


def _tensors(file: SafetensorsFile, weights: Mapping[str, Any]) -> dict[str, TensorInfo]:
    def malformed(name: str, what: str) -> MalformedCheckpointError:
        return MalformedCheckpointError(
            f"{file.path}: weight {name!r:.80} {what}; the file is damaged: convert the model again"
        )

    if strange := file.tensors.keys() ^ weights.keys():
        raise malformed(min(strange), "is listed and not there, or there and not listed")
    tensors = {}
    for name, entry in weights.items():
        match entry:
            case [str(dtype), [*shape], int(size)] if dtype in SCHEMES and all(
                type(n) is int and 0 < n < 1 << 31 for n in shape
            ):
                pass
            case _:
                raise malformed(name, f"is described as {entry!r:.80}")
        stored = file.tensors[name]
        if stored.dtype != "uint8" or not 0 <= stored.size_bytes - size < PACKED_ALIGNMENT:
            raise malformed(
                name, f"should have {size} bytes and has {stored.size_bytes} of {stored.dtype}"
            )
        if stored.offset % PACKED_ALIGNMENT:
            raise malformed(name, f"begins at byte {stored.offset}")
        if not 1 <= len(shape) <= 2 or math.prod(shape) >= 1 << 48:
            raise malformed(name, f"has the shape {shape!r:.80}")
        tensors[name] = TensorInfo(name, tuple(shape), dtype, stored.offset, size)
    return tensors
