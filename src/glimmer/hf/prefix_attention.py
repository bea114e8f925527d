"""Attention to a trained prefix: keys and values that stand before all of a text's own.

They are not rotated, no position counts them and every token sees them. So they enter where
attention is computed, behind the cache, which holds the text alone: lengths, positions, masks and
left padding are those of a model without prefix, in training and in ``generate``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "glimmer_prefix"
"""Of this attention in ``config._attn_implementation``."""
STATES = "prefix_states"
"""The argument by which keys and values come to each layer's attention."""


def prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    prefix_states: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """``query`` [batch, heads, queries, channels], ``key`` and ``value`` [batch, kv heads, keys,
    channels], ``attention_mask`` [batch, 1, queries, keys], True or 0 where a query sees a key;
    ``prefix_states`` [length, 2 * layers, kv heads, channels], keys and values of layer after
    layer."""
    length = prefix_states.shape[0]
    place = 2 * int(module.layer_idx)
    key = torch.cat([_before(prefix_states[:, place], key), key], dim=2)
    value = torch.cat([_before(prefix_states[:, place + 1], value), value], dim=2)
    if attention_mask is not None:
        seen: Any = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = functional.pad(attention_mask, (length, 0), value=seen)
    else:
        assert query.shape[2] == 1, "only a single token may see all others without a mask"
    kwargs["is_causal"] = False  # the mask tells all
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **kwargs
    )
    return output


def _before(states: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """States of one layer, [length, kv heads, channels], for each text of a batch."""
    batch = others.shape[0]
    return states.to(others).transpose(0, 1).unsqueeze(0).expand(batch, -1, -1, -1)


def explicit_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """SDPA's mask, also where a flag would stand for it: a prefix does not fit that flag."""
    mask: torch.Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask


AttentionInterface.register(NAME, prefix_attention)
AttentionMaskInterface.register(NAME, explicit_mask)
