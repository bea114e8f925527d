"""How well blanks in held-out texts are filled, beside a guess that knows frequencies alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glimmer.training.blank_infilling import IGNORED, Kind, Row


@dataclass(frozen=True, slots=True)
class Score:
    """Of the tokens that were taken out, given those before them in their span and that it goes on:
    what ends a span is neither counted nor thought possible."""

    num_tokens: int
    loss: float
    """Mean, in nats per token."""
    accuracy: float
    """Share of tokens that were thought the likeliest."""

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @classmethod
    def of(cls, losses: npt.NDArray[np.float64], hits: npt.NDArray[np.bool_]) -> Score:
        return cls(len(losses), float(losses.mean()), float(hits.mean()))


def taken_out(rows: Sequence[Row], end_id: int) -> npt.NDArray[np.int64]:
    """The tokens that are to be predicted, row after row, without what ends a span."""
    targets = np.concatenate([row.targets[row.targets != IGNORED] for row in rows])
    return targets[targets != end_id]


def unigram_score(rows: Sequence[Row], counts: npt.NDArray[np.int64], end_id: int) -> Score:
    """Of a guess by how often each token occurs in the training texts, one added to each."""
    targets = taken_out(rows, end_id)
    probabilities = (counts + 1) / (counts.sum() + len(counts))
    return Score.of(-np.log(probabilities[targets]), targets == int(np.argmax(counts)))


def to_metrics(scores: Mapping[Kind, Score]) -> dict[str, float]:
    """Under the names of a log: loss, perplexity and accuracy per kind, and the loss of all."""
    metrics = {
        f"eval_{kind}_{name}": getattr(score, name)
        for kind, score in scores.items()
        for name in ("loss", "perplexity", "accuracy")
    }
    total = sum(score.num_tokens for score in scores.values())
    metrics["eval_loss"] = sum(s.loss * s.num_tokens for s in scores.values()) / total
    return metrics
