"""What every checkpoint format offers: names, shapes, types, bytes. Knows no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and how it is stored.

    ``shape`` is row-major, slowest dimension first (``[out, in]`` for a matrix). ``dtype`` names a
    scheme of ``glimmer.quantization``: "float32", "float16", "bfloat16", "q8_0", "q4_0" ...; other
    types have names of their own, "int8" or "q2_k". ``offset`` counts bytes from the start of the
    file that the tensor lies in.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    size_bytes: int


class Checkpoint(Protocol):
    """An open model file or folder. Tensors are read lazily; nothing is copied until asked for."""

    @property
    def path(self) -> Path: ...

    @property
    def format(self) -> str:
        """Such as "gguf"."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's own keys and values: numbers, strings, booleans, lists."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def file(self, name: str) -> Path | None:
        """A file that lies beside the weights, such as "tokenizer.model"; None if there is none."""
        ...

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor, ``[size_bytes]``, read-only, without a copy."""
        ...

    def release(self, name: str) -> None:
        """Let the operating system drop the tensor's pages; reading it again is allowed."""
        ...

    def release_metadata(self) -> None:
        """Let go of the metadata, in which a vocabulary is large; it is empty from then on."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
