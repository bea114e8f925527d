"""A transformers model in the place of the native core: the engine's batches on a torch device.

Scheduling, the prefix cache, drafts, constraints and stops are the engine's, and tokens are chosen
by the native core's own sampler. What the native core promises beyond that, the same bits whatever
runs beside a request, torch does not: its sums depend on the shapes of a batch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from glimmer.architecture import Architecture
from glimmer.catalogue import find_file
from glimmer.checkpoints import open_checkpoint
from glimmer.errors import InvalidParameterError
from glimmer.families.weight_map import Layout
from glimmer.hf.adapters import TorchLora, TorchPrefix, adapted
from glimmer.hf.devices import find_device, memory_errors
from glimmer.hf.integers import IntegerKind, integer_bytes, integer_config
from glimmer.hf.loading import layout_of, source_of, stored_dtype
from glimmer.hf.loading import load as load_network
from glimmer.hf.paged import NAME, PagedCache, PagedStep
from glimmer.hf.quiet import quiet_logs
from glimmer.hf.tensors import float_dtype
from glimmer.loader import LoadedModel, Weights, described
from glimmer.native import StepInput, StepResult, available_memory, sample
from glimmer.native.model import Float32Array, KVDType


class TorchRunner:
    """Runs ``model`` for the engine. ``architecture`` is that of its checkpoint, ``layout`` names
    its tensors. Steps from several threads take turns."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture, layout: Layout) -> None:
        model.set_attn_implementation(NAME)
        model.config.tie_last_hidden_states = False  # the last ones come before the final norm
        self.architecture = architecture
        self._layout = layout
        self._model = model.eval()
        self._turn = threading.Lock()

    @property
    def weights_bytes(self) -> int:
        held = {id(t): t for t in (*self._model.parameters(), *self._model.buffers())}
        return sum(map(_bytes_of, held.values()))

    @property
    def device(self) -> torch.device:
        return self._model.get_input_embeddings().weight.device

    def available_memory(self) -> int | None:
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        return available_memory()  # MPS shares it with the processor

    def new_cache(self, num_blocks: int, dtype: KVDType) -> PagedCache:
        """ "float16" is the network's own type where that has two bytes.

        Raises:
            InvalidParameterError: int8, in which only the native core keeps keys and values.
        """
        return PagedCache(self.architecture, num_blocks, self._kept(dtype), self.device)

    def new_lora(self, parts: Mapping[str, tuple[Float32Array, Float32Array, float]]) -> TorchLora:
        """Raises as ``TorchLora``, and OutOfMemoryError."""
        with memory_errors(f"The adapter does not fit on {self.device}."):
            return TorchLora(self._model, self.architecture, self._layout, parts)

    def new_prefix(self, values: Float32Array, dtype: KVDType) -> TorchPrefix:
        """Raises as ``TorchPrefix`` and ``new_cache``, and OutOfMemoryError."""
        with memory_errors(f"The prefix does not fit on {self.device}."):
            return TorchPrefix(self.architecture, values, self._kept(dtype), self.device)

    def _kept(self, dtype: KVDType) -> torch.dtype:
        if dtype == "int8":
            raise InvalidParameterError(
                "The torch engine keeps keys and values in float16 or float32, not in int8: leave "
                "kv_cache out, or take the native engine."
            )
        own = self._model.dtype
        if dtype == "float16" and own.itemsize == 2:
            return own
        return torch.float32 if dtype == "float32" else torch.float16

    @torch.inference_mode()
    def step(self, cache: PagedCache, step: StepInput) -> StepResult:
        """Raises OutOfMemoryError where the device has no room for it."""
        with (
            self._turn,
            memory_errors(f"A step of {len(step.token_ids)} tokens does not fit on {self.device}."),
        ):
            logits, hidden = self._forward(cache, step)
        if step.sampling is not None:
            assert logits is not None
            return replace(sample(logits, step.sampling), hidden=hidden)
        empty = np.empty((0, 0))
        return StepResult(
            token_ids=np.empty(0, np.int32),
            logprobs=np.empty(0, np.float32),
            top_ids=empty.astype(np.int32),
            top_logprobs=empty.astype(np.float32),
            logits=logits,
            hidden=hidden,
        )

    def _forward(
        self, cache: PagedCache, step: StepInput
    ) -> tuple[Float32Array | None, Float32Array | None]:
        """Logits and hidden states, as a ``StepResult`` has them; None where not wanted."""
        device = self.device
        rows = torch.from_numpy(step.logit_rows).long().to(device)
        inputs: dict[str, Any] = {
            "input_ids": _row(step.token_ids, device),
            "position_ids": self._positions(step).to(device),
            "use_cache": False,
            "output_hidden_states": step.return_hidden,
            "paged": PagedStep(cache, step, device),
        }
        logits = hidden = None
        with adapted(self._model, step):
            if step.return_logits or step.sampling is not None:
                output = self._model(**inputs, logits_to_keep=rows)
                logits = output.logits[0].float().cpu().numpy()
            else:
                output = self._model.base_model(**inputs)
        if step.return_hidden:
            states = [layer[0, rows].float() for layer in output.hidden_states]
            hidden = torch.stack(states).cpu().numpy()
        return logits, hidden

    @staticmethod
    def _positions(step: StepInput) -> torch.Tensor:
        """[1, tokens], or [1, 2, tokens] where positions have two dimensions."""
        positions: Any = step.positions
        if positions is None:
            positions = np.concatenate(
                [
                    np.arange(end - length, end)
                    for length, end in zip(step.query_lengths, step.kv_lengths, strict=True)
                ]
            )
        if step.block_positions is not None:
            positions = np.stack([positions, step.block_positions])
        return torch.from_numpy(np.ascontiguousarray(positions)).long()[None]


def _bytes_of(tensor: Any) -> int:
    """What a tensor holds, also one that is made of others (torchao's)."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    return sum(_bytes_of(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def _row(values: Any, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).long()[None].to(device)


def load(
    model: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    family: str | None = None,
    quantization_config: Any = None,
) -> LoadedModel:
    """A model that ``LLM`` and ``AsyncLLM`` take, run by torch on ``device``.

    "auto" is CUDA or MPS where there is one, else the CPU. ``dtype`` "auto" is the stored type, or
    float32 on a CPU, which computes slowly in others; "int8" and "int4" are bitsandbytes' or
    torchao's (``integer_config``), for all linears but the head and experts that a router chooses.

    Raises: as ``glimmer.hf.load``.
    """
    chosen = find_device(device)
    if dtype == "auto" and chosen.type == "cpu" and quantization_config is None:
        dtype = torch.float32
    path, release = find_file(model)
    with open_checkpoint(path) as checkpoint:
        facts = described(checkpoint, family)  # what is wrong with it is told before the weights
    if dtype in ("int8", "int4"):
        if quantization_config is not None:
            raise InvalidParameterError(
                f"dtype {dtype!r} and quantization_config both say how weights are quantised. Give "
                "one of them."
            )
        with quiet_logs():
            quantization_config, dtype = integer_config(
                cast("IntegerKind", dtype), chosen, facts.architecture
            )
    with _quiet():
        network = load_network(
            path, dtype=dtype, device=chosen, family=family, quantization_config=quantization_config
        )
    exporter = facts.family.exporter
    assert exporter is not None, "load_network has looked"
    layout = layout_of(facts.family, exporter.folder)
    runner = TorchRunner(network, facts.architecture, layout)
    weights: Weights = "float32" if network.dtype == torch.float32 else "auto"
    return LoadedModel(
        path, facts.own_name, facts.family, facts.architecture, runner, facts.tokenizer,
        facts.chat, weights, release,
    )  # fmt: skip


def expected_bytes(
    model: str | os.PathLike[str], *, device: str, dtype: str, family: str | None
) -> int:
    """What the weights will take once ``load`` has them, told without reading any.

    Raises: as ``glimmer.hf.load``.
    """
    chosen = find_device(device)
    with open_checkpoint(find_file(model)[0]) as checkpoint:
        source = source_of(checkpoint, family)
        if dtype in ("int8", "int4"):
            return integer_bytes(cast("IntegerKind", dtype), chosen, source.architecture)
        held: str | torch.dtype = dtype
        if dtype == "auto":
            held = torch.float32 if chosen.type == "cpu" else stored_dtype(source)
        return source.architecture.num_parameters * float_dtype(held).itemsize


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar: commands and the server tell what they do themselves."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet_logs():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def set_threads(count: int) -> None:
    """How many threads torch computes with on a CPU."""
    torch.set_num_threads(count)
