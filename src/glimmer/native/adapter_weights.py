"""What an adapter brings to a network, in the core's form: low-rank products, a prefix."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from glimmer.errors import InvalidParameterError
from glimmer.native import _core
from glimmer.native.model import KVDType, NativeModel, to_core

Floats = npt.NDArray[np.float32]

_SAME_INPUTS = {
    **dict.fromkeys(("attn_q", "attn_k", "attn_v"), "attn_qkv"),
    **dict.fromkeys(("mlp_gate", "mlp_up"), "mlp_inner"),
}
"""Linears whose inputs are the same, by a name for them together."""


class Lora:
    """Low-rank products for linears of a network: ``y += scale * b @ (a @ x)``.

    ``parts`` has by canonical name without ".weight" ("layers.0.attn_q"): ``a`` float32
    ``[rank, in]``, ``b`` float32 ``[out, rank]``, and the scale. Parts of linears that share their
    inputs may share one array ``a``; it is then multiplied once.

    Raises:
        MalformedCheckpointError: no such linear, or a shape that does not fit it.
        UnsupportedArchitectureError: a linear that takes no adapter while it runs, such as one of
            an expert that a router chooses.
    """

    def __init__(
        self, model: NativeModel, parts: Mapping[str, tuple[Floats, Floats, float]]
    ) -> None:
        self.core = _core.Lora(to_core(model.architecture))
        owners: dict[tuple[int, str, str], str] = {}
        # In the core's order, in which the owner of a shared array comes first.
        order = {name: i for i, name in enumerate(model.architecture.weight_shapes())}
        for name in sorted(parts, key=lambda name: order.get(f"{name}.weight", len(order))):
            a, b, scale = parts[name]
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
                raise InvalidParameterError(
                    f"The adapter's part for {name!r} has A {list(a.shape)} and B {list(b.shape)}, "
                    "but these must be [rank, in] and [out, rank]."
                )
            layer, _, linear = name.rpartition(".")
            same_inputs = (id(a), layer, _SAME_INPUTS.get(linear, linear))
            self.core.add(
                name,
                scale,
                np.ascontiguousarray(a, np.float32),
                np.ascontiguousarray(b, np.float32),
                owners.get(same_inputs, ""),
            )
            owners.setdefault(same_inputs, name)

    @property
    def size_bytes(self) -> int:
        return self.core.size_bytes


class KVPrefix:
    """A trained prefix: keys, unrotated, and values that stand before a sequence.

    ``values`` is float32 ``[length, num_layers, 2, kv_width]``, keys first. It is kept as a KV
    cache of ``dtype`` keeps what it holds, and serves caches of that type alone.

    Raises:
        InvalidParameterError: another shape than the network's, or no token.
        OutOfMemoryError: the system refuses the memory.
    """

    def __init__(self, model: NativeModel, values: Floats, dtype: KVDType = "float16") -> None:
        a = model.architecture
        wanted = (a.num_layers, 2, a.num_kv_heads * a.head_dim)
        if values.ndim != 4 or values.shape[1:] != wanted or len(values) < 1:
            raise InvalidParameterError(
                f"A prefix of this network must have shape [length, {', '.join(map(str, wanted))}],"
                f" but it has {list(values.shape)}."
            )
        rows = np.ascontiguousarray(values.transpose(1, 2, 0, 3), np.float32)
        self.core = _core.KVPrefix(model.decoder, getattr(_core.KVDType, dtype), rows)

    @property
    def length(self) -> int:
        return self.core.length

    @property
    def size_bytes(self) -> int:
        return self.core.size_bytes
