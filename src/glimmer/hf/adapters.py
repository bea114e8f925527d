"""Adapters beside a transformers model, for some of the sequences of a step.

LoRA is added behind the linears by hooks, so that the network may be of any class and quantised,
and rows without an adapter are what they are alone. Trained prefixes enter in the paged attention.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from glimmer.architecture import Architecture
from glimmer.errors import InvalidParameterError, UnsupportedArchitectureError
from glimmer.families.weight_map import Layout, RowRange
from glimmer.native import StepInput

Floats = npt.NDArray[np.float32]
Product = tuple[torch.Tensor, torch.Tensor]
"""A, float32 ``[rank, in]``, and scaled B, float32 ``[out, rank]``."""


class TorchLora:
    """Low-rank products for linears of a network: ``y += scale * b @ (a @ x)``.

    ``parts`` has by canonical name without ".weight" ("layers.0.attn_q"): ``a`` float32
    ``[rank, in]``, ``b`` float32 ``[out, rank]``, and the scale. ``layout`` names the network's
    tensors.

    Raises:
        UnsupportedArchitectureError: what is no linear of its own in this network, such as that of
            an expert which a router chooses.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        architecture: Architecture,
        layout: Layout,
        parts: Mapping[str, tuple[Floats, Floats, float]],
    ) -> None:
        device = network.get_input_embeddings().weight.device
        shared: dict[int, torch.Tensor] = {}
        wholes: dict[tuple[nn.Linear, int], Floats] = {}
        for name, (a, b, scale) in parts.items():
            linear, rows = _find(network, architecture, layout, name)
            whole = wholes.setdefault(
                (linear, id(a)), np.zeros((linear.out_features, len(a)), np.float32)
            )
            _put(whole, b * np.float32(scale), rows)
            shared[id(a)] = torch.tensor(a, device=device)
        self.products: dict[nn.Module, list[Product]] = defaultdict(list)
        for (linear, of), whole in wholes.items():
            self.products[linear].append((shared[of], torch.tensor(whole, device=device)))
        halves = [*shared.values(), *(b for made in self.products.values() for _, b in made)]
        self.size_bytes = sum(half.nbytes for half in halves)


class TorchPrefix:
    """A trained prefix: keys, unrotated, and values that stand before a sequence.

    ``values`` is float32 ``[length, num_layers, 2, kv_width]``, keys first.

    Raises:
        InvalidParameterError: another shape than the network's, or no token.
    """

    def __init__(
        self, architecture: Architecture, values: Floats, dtype: torch.dtype, device: torch.device
    ) -> None:
        a = architecture
        wanted = (a.num_layers, 2, a.num_kv_heads * a.head_dim)
        if values.ndim != 4 or values.shape[1:] != wanted or len(values) < 1:
            raise InvalidParameterError(
                f"A prefix of this network must have shape [length, {', '.join(map(str, wanted))}],"
                f" but it has {list(values.shape)}."
            )
        states = values.reshape(len(values), 2 * a.num_layers, a.num_kv_heads, a.head_dim)
        self.states = torch.tensor(states, dtype=dtype, device=device)
        """``[length, 2 * layers, kv heads, channels]``: a layer's keys, then its values."""
        self.size_bytes = self.states.nbytes


@contextmanager
def adapted(network: PreTrainedModel, step: StepInput) -> Iterator[None]:
    """While it lasts, the network computes the rows of ``step`` with the LoRA of their sequences.
    One step of it at a time."""
    handles = []
    for linear, work in _work_of(network.get_output_embeddings(), step).items():
        handles.append(linear.register_forward_hook(partial(_add, work)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_Work = list[tuple[torch.Tensor, Product]]
"""Rows of a linear's inputs, and what is added to its results there."""


def _work_of(head: nn.Module | None, step: StepInput) -> Mapping[nn.Module, _Work]:
    work: dict[nn.Module, _Work] = defaultdict(list)
    loras: Sequence[TorchLora | None] = step.loras
    owners = np.repeat(np.arange(len(step.query_lengths)), step.query_lengths)
    for lora in {lora for lora in loras if lora is not None}:
        has_it = np.array([other is lora for other in loras])[owners]
        # The head sees the rows whose logits are wanted, and no others.
        rows, logit_rows = (
            torch.from_numpy(np.flatnonzero(which)) for which in (has_it, has_it[step.logit_rows])
        )
        for linear, products in lora.products.items():
            own = logit_rows if linear is head else rows
            work[linear] += [(own.to(product[0].device), product) for product in products]
    return work


def _add(work: _Work, _linear: nn.Module, args: tuple[Any, ...], output: Any) -> torch.Tensor:
    inputs, results = args[0].flatten(0, -2), output.flatten(0, -2)
    for rows, (a, b) in work:
        added = inputs[rows].float() @ a.T @ b.T
        results[rows] = (results[rows].float() + added).to(results.dtype)
    whole: torch.Tensor = results.view(output.shape)
    return whole


def _find(
    network: PreTrainedModel, architecture: Architecture, layout: Layout, name: str
) -> tuple[nn.Linear, tuple[RowRange, ...] | None]:
    """The linear that has the weight of this canonical name, and the weight's rows in it."""
    for piece in layout.pieces_of(f"{name}.weight"):
        try:
            module = network.get_submodule(piece.tensor.removesuffix(".weight"))
        except AttributeError:
            continue
        if isinstance(module, nn.Linear):
            return module, piece.row_ranges(architecture, f"{name}.weight")
    raise UnsupportedArchitectureError(
        f"{name} takes no adapter while the network runs, since it is no linear of its own in "
        f"{type(network).__name__}. Merge the adapter into the model (glimmer merge)."
    )


def _put(whole: Floats, b: Floats, rows: tuple[RowRange, ...] | None) -> None:
    """``b`` into the rows of ``whole`` that are its."""
    start = 0
    for first, last in rows or ((0, len(whole)),):
        whole[first:last] = b[start : start + last - first]
        start += last - first
