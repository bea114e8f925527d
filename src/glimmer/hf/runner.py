"""A transformers model in the place of the native core: the engine's batches on a torch device.

Scheduling, the prefix cache, drafts, constraints and stops are the engine's, and tokens are chosen
by the native core's own sampler. What the native core promises beyond that, the same bits whatever
runs beside a request, torch does not: its sums depend on the shapes of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from glimmer.architecture import Architecture
from glimmer.catalogue import find_file
from glimmer.checkpoints import open_checkpoint
from glimmer.errors import InvalidParameterError
from glimmer.hf.devices import find_device, memory_errors
from glimmer.hf.loading import load as load_network
from glimmer.hf.paged import NAME, PagedCache, PagedStep
from glimmer.loader import LoadedModel, Weights, described
from glimmer.native import StepInput, StepResult, available_memory, sample
from glimmer.native.model import KVDType


class TorchRunner:
    """Runs ``model`` for the engine. ``architecture`` is that of its checkpoint."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture) -> None:
        model.set_attn_implementation(NAME)
        self.architecture = architecture
        self._model = model.eval()

    @property
    def weights_bytes(self) -> int:
        return int(self._model.get_memory_footprint())

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
        if dtype == "int8":
            raise InvalidParameterError(
                "The torch engine keeps keys and values in float16 or float32, not in int8: leave "
                "kv_cache out, or take the native engine."
            )
        own = self._model.dtype
        kept = torch.float32 if dtype == "float32" else torch.float16
        if dtype == "float16" and own.itemsize == 2:
            kept = own
        return PagedCache(self.architecture, num_blocks, kept, self.device)

    @torch.inference_mode()
    def step(self, cache: PagedCache, step: StepInput) -> StepResult:
        """Raises:
        InvalidParameterError: an array asks for what only the native core gives.
        OutOfMemoryError: the device has no room for the step.
        """
        if step.return_hidden:
            raise InvalidParameterError(
                "The torch engine gives no hidden states, so no embeddings: take the native engine."
            )
        assert not any((*step.loras, *step.prefixes)), "adapters need LoadedModel.native"
        device = self.device
        with memory_errors(f"A step of {len(step.token_ids)} tokens does not fit on {device}."):
            paged = PagedStep(cache, step, device)
            output = self._model(
                input_ids=_row(step.token_ids, device),
                position_ids=self._positions(step).to(device),
                logits_to_keep=torch.from_numpy(step.logit_rows).long().to(device),
                use_cache=False,
                paged=paged,
            )
            logits = output.logits[0].float().cpu().numpy()
        if step.sampling is not None:
            return sample(logits, step.sampling)
        empty = np.empty((0, 0))
        return StepResult(
            token_ids=np.empty(0, np.int32),
            logprobs=np.empty(0, np.float32),
            top_ids=empty.astype(np.int32),
            top_logprobs=empty.astype(np.float32),
            logits=logits,
        )

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
    float32 on a CPU, which computes slowly in others.

    Raises: as ``glimmer.hf.load``.
    """
    chosen = find_device(device)
    if dtype == "auto" and chosen.type == "cpu" and quantization_config is None:
        dtype = torch.float32
    path, release = find_file(model)
    with _quiet():
        network = load_network(
            path, dtype=dtype, device=chosen, family=family, quantization_config=quantization_config
        )
    with open_checkpoint(path) as checkpoint:
        facts = described(checkpoint, family)
    runner = TorchRunner(network, facts.architecture)
    weights: Weights = "float32" if network.dtype == torch.float32 else "auto"
    return LoadedModel(
        path, facts.own_name, facts.family, facts.architecture, runner, facts.tokenizer,
        facts.chat, weights, release,
    )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar: commands and the server tell what they do themselves."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def set_threads(count: int) -> None:
    """How many threads torch computes with on a CPU."""
    torch.set_num_threads(count)
