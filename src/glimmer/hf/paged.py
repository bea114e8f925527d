"""Attention over a paged cache of torch tensors, for a flat batch of several sequences.

A step's tokens stand in one row, one sequence after the other. Each layer writes their keys and
values into the cache's pages and attends to the pages of each token's own sequence; sequences with
as many new tokens are computed together. Which blocks are whose is the engine's affair.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from glimmer.architecture import Architecture
from glimmer.errors import InvalidParameterError
from glimmer.hf.adapters import TorchPrefix
from glimmer.hf.devices import memory_errors
from glimmer.native import BLOCK_SIZE, StepInput

NAME = "glimmer_paged"
"""Of this attention in ``config._attn_implementation``."""


class PagedCache:
    """Keys and values, ``[blocks, BLOCK_SIZE, kv heads, channels]`` of each layer.

    Raises:
        OutOfMemoryError: the device refuses the memory.
    """

    def __init__(
        self, a: Architecture, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        if num_blocks < 1:
            raise InvalidParameterError(f"num_blocks must be at least 1, but it is {num_blocks}.")
        self.num_blocks = num_blocks
        shape = (2, num_blocks, BLOCK_SIZE, a.num_kv_heads, a.head_dim)
        with memory_errors(
            f"A KV cache of {num_blocks * BLOCK_SIZE} tokens does not fit on {device}."
        ):
            # On a CPU memory is taken as pages are first written.
            self.pages = [
                torch.empty(shape, dtype=dtype, device=device) for _ in range(a.num_layers)
            ]
        self.size_bytes = sum(layer.nbytes for layer in self.pages)

    def copy_block(self, source: int, target: int) -> None:
        for layer in self.pages:
            layer[:, target] = layer[:, source]

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """``key`` and ``value`` [tokens, kv heads, channels] into ``slots`` [tokens]."""
        pages = self.pages[layer]
        for part, states in enumerate((key, value)):
            pages[part].flatten(0, 1).index_copy_(0, slots, states.to(pages.dtype))

    def read(self, layer: int, tables: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Copies of keys, then values, [sequences, kv heads, tokens of all blocks, channels], of
        the blocks ``tables`` [sequences, blocks]."""
        for part in self.pages[layer]:
            yield part[tables].flatten(1, 2).transpose(1, 2).to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Sequences with as many new tokens each, and the same prefix."""

    rows: torch.Tensor
    """int64 [sequences, new tokens] places in the batch."""
    tables: torch.Tensor
    """int64 [sequences, blocks]; sequences that have fewer repeat block 0, which ``seen`` hides."""
    seen: torch.Tensor
    """bool [sequences, 1, new tokens, tokens of all blocks]"""
    unseen: torch.Tensor
    """bool [sequences, 1, tokens of all blocks, 1], True at what none of them sees."""
    prefix: torch.Tensor | None
    """Of an adapter: [length, 2 * layers, kv heads, channels]"""


class PagedStep:
    """Where the tokens of one step lie, and what they see."""

    def __init__(self, cache: PagedCache, step: StepInput, device: torch.device) -> None:
        self.cache = cache
        lengths, ends, tables = step.query_lengths, step.kv_lengths, step.block_tables
        contexts = step.context_lengths
        if contexts is None:
            contexts = np.zeros_like(ends)
        firsts = np.cumsum(lengths) - lengths
        slots = np.empty(len(step.token_ids), np.int64)
        prefixes: Sequence[TorchPrefix | None] = step.prefixes or [None] * len(lengths)
        alike: defaultdict[tuple[int, TorchPrefix | None], list[int]] = defaultdict(list)
        for s, (first, length, end) in enumerate(zip(firsts, lengths, ends, strict=True)):
            places = np.arange(end - length, end)
            blocks = tables[s, places // BLOCK_SIZE].astype(np.int64)
            slots[first : first + length] = blocks * BLOCK_SIZE + places % BLOCK_SIZE
            alike[int(length), prefixes[s]].append(s)
        self.slots = torch.from_numpy(slots).to(device)
        self.groups = [
            self._group(length, prefix, np.array(of), firsts, ends, contexts, tables, device)
            for (length, prefix), of in alike.items()
        ]

    @staticmethod
    def _group(
        length: int, prefix: TorchPrefix | None, of: Any, firsts: Any, ends: Any, contexts: Any,
        tables: Any, device: torch.device,
    ) -> _Group:  # fmt: skip
        num_blocks = -(-int(ends[of].max()) // BLOCK_SIZE)
        used = np.arange(num_blocks) * BLOCK_SIZE < ends[of, None]
        keys = np.arange(num_blocks * BLOCK_SIZE)
        places = ends[of, None] - length + np.arange(length)
        seen = (keys <= places[..., None]) | (keys < contexts[of, None, None])
        return _Group(
            rows=torch.from_numpy(firsts[of, None] + np.arange(length)).long().to(device),
            tables=torch.from_numpy(np.where(used, tables[of, :num_blocks], 0)).long().to(device),
            seen=torch.from_numpy(seen[:, None]).to(device),
            unseen=torch.from_numpy(~seen.any(axis=1)[:, None, :, None]).to(device),
            prefix=None if prefix is None else prefix.states,
        )


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    paged: PagedStep,
    scaling: float,
    prefix_states: torch.Tensor | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """``query`` [1, heads, tokens, channels], ``key`` and ``value`` [1, kv heads, tokens,
    channels] of all sequences; ``prefix_states`` are the network's own prefix, [length, 2 *
    layers, kv heads, channels]; ``attention_mask`` is not looked at."""
    layer = int(module.layer_idx)
    paged.cache.write(layer, paged.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    queries = query[0].transpose(0, 1)
    output = torch.empty_like(queries)
    for group in paged.groups:
        keys, values = paged.cache.read(layer, group.tables, query.dtype)
        # What lies behind a sequence's end may be anything, NaN too, which no mask takes back.
        keys, values = keys.masked_fill_(group.unseen, 0), values.masked_fill_(group.unseen, 0)
        seen = group.seen
        prefix = prefix_states if group.prefix is None else group.prefix
        if prefix is not None:
            count = len(group.rows)
            before = prefix[:, 2 * layer : 2 * layer + 2].to(keys).permute(1, 2, 0, 3)
            keys = torch.cat([before[0].expand(count, -1, -1, -1), keys], dim=2)
            values = torch.cat([before[1].expand(count, -1, -1, -1), values], dim=2)
            seen = functional.pad(seen, (before.shape[2], 0), value=True)
        attended, _ = sdpa_attention_forward(
            module, queries[group.rows].transpose(1, 2), keys, values, seen, scaling=scaling,
            is_causal=False,
        )  # fmt: skip
        output[group.rows] = attended
    return output[None], None


AttentionInterface.register(NAME, paged_attention)
