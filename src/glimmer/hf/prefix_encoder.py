"""The weights from which P-Tuning v2 makes its prefix.

Formula and names: PrefixEncoder in the official modeling_chatglm.py of ChatGLM-6B and ChatGLM2-6B.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PREFIX_TENSORS = (
    "embedding.weight", "trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias",
)  # fmt: skip
_DROPOUT = 0.1  # of the official code, in training


class PrefixEncoder(nn.Module):
    """Keys and values of ``num_tokens`` that no text holds, for all layers.

    They are rows of an embedding, or made of such rows by a layer of ``hidden_size`` with tanh and
    one that widens it.
    """

    def __init__(
        self,
        num_tokens: int,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        projection: bool = False,
        hidden_size: int | None = None,
        embedding_size: int | None = None,
    ) -> None:
        """``embedding_size`` is the width of the rows that are projected; by default that of all
        keys and values, as since ChatGLM2-6B."""
        super().__init__()
        width = num_layers * 2 * num_kv_heads * head_dim
        self.shape = (num_tokens, num_layers * 2, num_kv_heads, head_dim)
        self.projection = projection
        rows = (embedding_size or width) if projection else width
        self.embedding = nn.Embedding(num_tokens, rows)
        if projection:
            hidden = hidden_size or rows
            self.trans = nn.Sequential(nn.Linear(rows, hidden), nn.Tanh(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(_DROPOUT)
        self._kept: tuple[Any, torch.Tensor] | None = None

    def forward(self) -> torch.Tensor:
        """[num_tokens, 2 * layers, kv heads, channels]: a layer's keys, then its values."""
        states = self.embedding.weight
        if self.projection:
            states = self.trans(states)
        dropped: torch.Tensor = self.dropout(states.view(self.shape))
        return dropped

    def states(self) -> torch.Tensor:
        """``forward``, computed anew only where a weight has changed or gradients are wanted: a
        projection is some hundred times the work of a token."""
        if self.training or torch.is_grad_enabled() or not self.projection:
            states: torch.Tensor = self()
            return states
        version = [(p.data_ptr(), p._version, p.dtype, p.device) for p in self.parameters()]
        if self._kept is None or self._kept[0] != version:
            self._kept = (version, self())
        return self._kept[1]
