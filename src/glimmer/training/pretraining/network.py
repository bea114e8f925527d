"""The network that learns to fill blanks, and its batches as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from glimmer.hf.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glimmer.training.blank_infilling import IGNORED, BlankTokens, Row
from glimmer.training.pretraining.config import PretrainConfig
from glimmer.training.pretraining.corpus import TrainingRows

DEFAULT_MAX_LENGTH = 2048
_GELU_RMS = 0.65
"""Root mean square of GELU's output for a normal input."""
Batch = dict[str, torch.Tensor]


class BlankInfillingNetwork(ChatGLMForConditionalGeneration):
    """Computes logits where something is predicted, and there alone: most places are context."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        excluded_id: int | None = None,
        **_kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """``labels`` [batch, tokens] are a row's targets: not shifted, ``IGNORED`` where there is
        none. ``losses`` and ``hits`` are those of the others, in order: natural log probabilities,
        and whether the likeliest token was right. ``loss`` is their sum over
        ``num_items_in_batch``, or their mean. ``excluded_id`` is a token that is known not to come.
        """
        hidden = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        predicted = labels != IGNORED
        targets = labels[predicted]
        logits = self.lm_head(hidden[predicted]).float()
        if excluded_id is not None:
            logits[:, excluded_id] = -torch.inf
        losses = functional.cross_entropy(logits, targets, reduction="none")
        count = len(losses) if num_items_in_batch is None else num_items_in_batch
        return {
            "loss": losses.sum() / count,
            "losses": losses.detach(),
            "hits": logits.detach().argmax(dim=-1) == targets,
        }


def new_network(
    config: PretrainConfig, tokens: BlankTokens, vocab_size: int, pad_id: int
) -> BlankInfillingNetwork:
    """Of the config's size, with random weights."""
    size = config.size
    settings = ChatGLMConfig(
        vocab_size=vocab_size,
        hidden_size=size.hidden,
        num_layers=size.layers,
        num_attention_heads=size.heads,
        inner_hidden_size=size.inner,
        max_sequence_length=config.max_length or max(DEFAULT_MAX_LENGTH, config.row_length),
        bos_token_id=tokens.start,
        eos_token_id=tokens.end,
        pad_token_id=pad_id,
        mask_token_id=tokens.mask,
        gmask_token_id=tokens.gmask,
    )
    torch.manual_seed(config.seed)
    network = BlankInfillingNetwork(settings)
    _draw_weights(network)
    return network


def _draw_weights(network: BlankInfillingNetwork) -> None:
    """Matrices that keep the variance of what they are given; embeddings as transformers has them.

    A block adds what it computes to its normed input times √56, whatever the number of layers
    (``RESIDUAL_SCALE`` of the family): made for 28 of them. With the small weights that are usual,
    of 0.02, what few layers add would drown in it, and a short run learns frequencies alone.
    """
    for layer in network.transformer.layers:
        for linear, gain in (
            (layer.attention.query_key_value, 1.0),
            (layer.attention.dense, 1.0),
            (layer.mlp.dense_h_to_4h, 1.0),
            (layer.mlp.dense_4h_to_h, 1 / _GELU_RMS),
        ):
            nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.in_features))


def known_network(path: str) -> BlankInfillingNetwork:
    """A model that was trained before, in float32.

    Raises: as ``glimmer.hf.load``.
    """
    from glimmer import hf

    loaded = hf.load(path, dtype="float32")
    assert isinstance(loaded, ChatGLMForConditionalGeneration), "the family was checked"
    # The same modules, with another forward pass.
    loaded.__class__ = BlankInfillingNetwork
    assert isinstance(loaded, BlankInfillingNetwork)
    return loaded


class RowDataset(Dataset[Row]):
    """So many rows from the beginning."""

    def __init__(self, rows: TrainingRows, count: int) -> None:
        self._rows = rows
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        return self._rows.row(index)


def collate(rows: Sequence[Row]) -> Batch:
    """``input_ids``, ``labels`` and ``kinds`` [batch, tokens], ``position_ids`` [batch, 2, tokens],
    ``attention_mask`` [batch, 1, tokens, tokens]."""
    masks = np.stack([row.attention_mask() for row in rows])[:, None]
    return {
        "input_ids": torch.from_numpy(np.stack([row.token_ids for row in rows])),
        "position_ids": torch.from_numpy(np.stack([row.positions for row in rows])),
        "attention_mask": torch.from_numpy(masks),
        "labels": torch.from_numpy(np.stack([row.targets for row in rows])),
        "kinds": torch.from_numpy(np.stack([row.kinds for row in rows])),
    }
