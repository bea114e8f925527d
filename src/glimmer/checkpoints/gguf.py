"""A GGUF file as a ``Checkpoint``: mapped into memory, tensors as views of the mapping."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from glimmer.checkpoints.checkpoint import TensorInfo
from glimmer.checkpoints.gguf_header import read_header
from glimmer.checkpoints.mapped_file import MappedFile
from glimmer.closing import ClosesAtExit


class GGUFCheckpoint(ClosesAtExit):
    """An open GGUF file, version 2 or 3, little endian.

    ``TensorInfo.dtype`` is a scheme of ``glimmer.quantization`` where there is one, else GGML's own
    name in lower case ("q4_k"): such tensors can be listed and read as bytes all the same.

    The file must not shrink while it is open (see ``MappedFile``).
    """

    format = "gguf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Maps the file and checks its whole header.

        Raises ModelNotFoundError (nothing there, or not allowed to read it), UnknownFormatError,
        MalformedCheckpointError or UnsupportedTensorTypeError.
        """
        self._path = Path(path)
        self._file: MappedFile | None = MappedFile(self._path)
        header = read_header(self._file.data, self._path)
        self._version = header.version
        self._keys_end = header.keys_end
        self._metadata = MappingProxyType(header.metadata)
        self._tensors = MappingProxyType(header.tensors)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def version(self) -> int:
        """The version of GGUF: 2 or 3."""
        return self._version

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def file(self, name: str) -> None:
        """None: a GGUF file holds all that belongs to it."""

    def without_tensors(self) -> bytes:
        """A GGUF file of the same keys, bit for bit, that holds no tensor."""
        assert self._file is not None, "the checkpoint is closed"
        keys = self._file.data[: self._keys_end]
        return keys[:8] + bytes(8) + keys[16:]  # magic and version, number of tensors, the rest

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor, uint8 ``[size_bytes]``: a read-only view of the mapping.

        Raises KeyError for a name that is not in ``tensors``.
        """
        tensor = self._tensors[name]
        assert self._file is not None, "the checkpoint is closed"
        return self._file.view(tensor.offset, tensor.size_bytes)

    def release(self, name: str) -> None:
        """Lets the operating system drop the pages that only this tensor occupies.

        Views stay valid: touching them reads the file again. Raises KeyError for a name that is not
        in ``tensors``.
        """
        tensor = self._tensors[name]
        assert self._file is not None, "the checkpoint is closed"
        self._file.release(tensor.offset, tensor.size_bytes)

    def release_metadata(self) -> None:
        """Lets go of the metadata, in which a vocabulary is large; it is empty from then on."""
        self._metadata = MappingProxyType({})

    def close(self) -> None:
        """Ends reading. The mapping itself goes when the last view of it does."""
        # mmap.close() refuses while views are alive; letting go of our reference never does.
        self._file = None
