"""The prefix of P-Tuning v2 (arXiv 2110.07602): keys and values, from the tensors it is kept as.

Formula: PrefixEncoder in the official modeling_chatglm.py. An embedding holds the keys and values
of all layers, or what two linears with a tanh between them make these of.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from glimmer.checkpoints import Checkpoint
from glimmer.errors import MalformedCheckpointError
from glimmer.families.weight_map import PrefixEncoder
from glimmer.quantization import SCHEMES, dequantize

Floats = npt.NDArray[np.float32]


class TrainedPrefix:
    """``length`` tokens of a network of ``num_layers``, whose KV heads have ``kv_width`` channels.

    Raises:
        MalformedCheckpointError: a tensor is missing, or has another shape or type.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: PrefixEncoder,
        *,
        length: int,
        num_layers: int,
        kv_width: int,
    ) -> None:
        self._checkpoint = checkpoint
        self._encoder = encoder
        self._num_layers = num_layers
        self._is_projected = encoder.first + ".weight" in checkpoint.tensors
        width = 2 * num_layers * kv_width
        wanted: dict[str, tuple[int, ...]] = {encoder.embedding: (length, width)}
        if self._is_projected:
            hidden, inputs = (*checkpoint.tensors[encoder.first + ".weight"].shape, 0, 0)[:2]
            wanted[encoder.embedding] = (length, inputs)
            wanted[encoder.first + ".weight"] = (hidden, inputs)
            wanted[encoder.first + ".bias"] = (hidden,)
            wanted[encoder.second + ".weight"] = (width, hidden)
            wanted[encoder.second + ".bias"] = (width,)
        for name, shape in wanted.items():
            self._check(name, shape, length)

    def _check(self, name: str, shape: tuple[int, ...], length: int) -> None:
        tensor = self._checkpoint.tensors.get(name)
        found = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        if tensor is None or tensor.dtype not in SCHEMES or tensor.shape != shape:
            raise MalformedCheckpointError(
                f"{self._checkpoint.path}: the config has a prefix of {length} tokens "
                f"(pre_seq_len), for which the tensor {name!r} must be "
                f"{list(shape)}, but there is {found}."
            )

    @cached_property
    def values(self) -> Floats:
        """Keys and values, unrotated, ``[length, num_layers, 2, kv_width]``."""
        encoder = self._encoder
        x = self._floats(encoder.embedding)
        if self._is_projected:
            for layer, activate in ((encoder.first, True), (encoder.second, False)):
                x = x @ self._floats(layer + ".weight").T + self._floats(layer + ".bias")
                x = np.tanh(x) if activate else x
        return x.reshape(len(x), self._num_layers, 2, -1)

    def _floats(self, name: str) -> Floats:
        tensor = self._checkpoint.tensors[name]
        return dequantize(tensor.dtype, self._checkpoint.read(name), tensor.shape)
