"""Stored weights as torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glimmer.errors import InvalidParameterError

FLOAT_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
)
"""Stored float types by the names that checkpoints give them."""


def float_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Raises InvalidParameterError for what is none of ``FLOAT_DTYPES``."""
    found = FLOAT_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in FLOAT_DTYPES.values():
        raise InvalidParameterError(
            f"dtype must be auto, {', '.join(FLOAT_DTYPES)} or the torch.dtype of that name, but "
            f"it is {dtype!r}."
        )
    return found


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, known in FLOAT_DTYPES.items() if known is dtype)


def to_tensor(data: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of a stored float type that owns its memory."""
    flat = data.reshape(-1)
    if not flat.flags.writeable:  # it belongs to the mapped file
        flat = flat.copy()
    return torch.from_numpy(flat).view(FLOAT_DTYPES[dtype]).reshape(shape)


class LazyTensor:
    """A tensor that is read when it is indexed, as the slices of safetensors' ``get_slice`` are."""

    def __init__(
        self, dtype: torch.dtype, shape: tuple[int, ...], read: Callable[[], torch.Tensor]
    ) -> None:
        self.dtype = dtype
        self.shape = torch.Size(shape)
        self._read = read

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._read()[index]

    def get_shape(self) -> list[int]:
        return list(self.shape)
