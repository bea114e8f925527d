"""Rows become the tensors of a batch: padded, or packed behind one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from glimmer.architecture import Architecture
from glimmer.training.data import IGNORED
from glimmer.training.finetuning.dataset import Row

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class PaddingCollator:
    """``input_ids``, ``attention_mask`` and ``labels``, int64 ``[rows, longest row]``."""

    pad_token_id: int
    side: Literal["left", "right"]

    def __call__(self, rows: Sequence[Row]) -> Batch:
        return {
            "input_ids": self._pad([row["input_ids"] for row in rows], self.pad_token_id),
            "attention_mask": self._pad([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": self._pad([row["labels"] for row in rows], IGNORED),
        }

    def _pad(self, lists: Sequence[Sequence[int]], filling: int) -> torch.Tensor:
        padded = torch.full((len(lists), max(map(len, lists))), filling)
        for row, values in zip(padded, lists, strict=True):
            part = slice(0, len(values)) if self.side == "right" else slice(-len(values), None)
            row[part] = torch.tensor(values)
        return padded


@dataclass(frozen=True, slots=True)
class PairCollator:
    """As TRL's DPOTrainer wants them: the chosen texts, then the rejected ones, each behind its
    prompt; ``input_ids``, ``attention_mask`` and ``completion_mask``, int64 ``[2 rows, longest]``.
    """

    padding: PaddingCollator

    def __call__(self, rows: Sequence[Row]) -> Batch:
        texts = [
            {
                "input_ids": row["prompt_ids"] + row[answer],
                "labels": [IGNORED] * len(row["prompt_ids"]) + row[answer],
            }
            for answer in ("chosen_ids", "rejected_ids")
            for row in rows
        ]
        batch = self.padding(texts)
        batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
        return batch


@dataclass(frozen=True, slots=True)
class PackingCollator:
    """Packs as rows in which no text sees another: ``input_ids``, ``labels``, int64 ``[rows, n]``.

    A causal network tells texts apart by their positions, ``position_ids`` int64 ``[rows, n]``,
    which begin anew with each of them; transformers makes the block mask of these. A network with
    a prefix mask or positions of two rows gets them, ``[rows, 2, n]``, and the mask itself,
    ``attention_mask`` bool ``[rows, 1, n, n]``, True where a token may look.
    """

    pad_token_id: int
    architecture: Architecture

    def __call__(self, rows: Sequence[Row]) -> Batch:
        longest = max(sum(len(part["input_ids"]) for part in row["parts"]) for row in rows)
        batch = [self._row(row["parts"], longest) for row in rows]
        return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}

    def _row(self, parts: Sequence[Row], length: int) -> Batch:
        ids = [token for part in parts for token in part["input_ids"]]
        # The first token of a text must not be predicted by the last one of the text before it.
        labels = [label for part in parts for label in (IGNORED, *part["labels"][1:])]
        padding = length - len(ids)
        row = {
            "input_ids": torch.tensor(ids + [self.pad_token_id] * padding),
            "labels": torch.tensor(labels + [IGNORED] * padding),
        }
        if self.architecture.blanks is None:
            positions = [p for part in parts for p in range(len(part["input_ids"]))]
            row["position_ids"] = torch.tensor(positions + list(range(padding)))
            return row
        return row | self._blocks(parts, length)

    def _blocks(self, parts: Sequence[Row], length: int) -> Batch:
        mask = torch.eye(length, dtype=torch.bool)  # padding sees itself: no row without a key
        positions = torch.zeros((2, length), dtype=torch.int64)
        start = 0
        for part in parts:
            layout = self.architecture.layout(part["input_ids"])
            end = start + len(part["input_ids"])
            block = mask[start:end, start:end]
            block |= torch.ones_like(block).tril()
            block[:, : layout.context_length] = True
            positions[0, start:end] = torch.tensor(layout.positions)
            if layout.block_positions is not None:
                positions[1, start:end] = torch.tensor(layout.block_positions)
            start = end
        return {"attention_mask": mask[None], "position_ids": positions}
