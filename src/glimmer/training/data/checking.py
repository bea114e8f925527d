"""A file of training data, gone through once: what is broken, and how long its sequences are."""

from __future__ import annotations

import os
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from glimmer.errors import TrainingDataError
from glimmer.families import Chat
from glimmer.tokenizers import Tokenizer
from glimmer.training.data.encoding import (
    Encoded,
    EncodingReport,
    TooLong,
    encode,
    encode_pair,
    noting_problems,
)
from glimmer.training.data.example import Example
from glimmer.training.data.forms import Columns
from glimmer.training.data.reading import read
from glimmer.training.data.report import Report

_COLUMNS = Columns()
_MAX_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Shown:
    """An example to look at, and its sequences; of a preference the chosen, then the rejected."""

    example: Example
    sequences: Sequence[Encoded]


@dataclass(slots=True)
class FileCheck:
    report: Report = field(default_factory=Report)
    """Of reading and encoding."""
    encoding: EncodingReport | None = None
    """None where no model was given."""
    num_preferences: int = 0
    lengths: array[int] = field(default_factory=lambda: array("q"))
    """Tokens of each sequence, as it is trained."""
    shown: list[Shown] = field(default_factory=list)
    other_keys: Counter[str] = field(default_factory=Counter)
    """In how many examples a key stands that is not read; the first 1000 of them."""

    def count_other_keys(self, example: Example) -> None:
        for key in example.extra:
            if key in self.other_keys or len(self.other_keys) < _MAX_KEYS:
                self.other_keys[key] += 1


def check_file(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    columns: Columns = _COLUMNS,
    model: tuple[Chat, Tokenizer] | None = None,
    max_length: int | None = None,
    too_long: TooLong = "cut",
    show: int = 0,
) -> FileCheck:
    """Read a file to its end and, for a ``model``'s chat and tokenizer, encode all of it.

    Without ``max_length`` nothing is too long. The first ``show`` examples are kept.

    Raises:
        InvalidParameterError: an unknown format, or a length that is not positive.
        ModelNotFoundError: no such file.
        TrainingDataError: the file cannot be read at all, or holds no record.
    """
    check = FileCheck(encoding=None if model is None else EncodingReport())
    longest = sys.maxsize if max_length is None else max_length

    def encoded(example: Example) -> list[Encoded]:
        assert model is not None
        given = (example, *model, longest)
        if example.rejected is None:
            return encode(*given, too_long=too_long, report=check.encoding)
        pair = encode_pair(*given, too_long=too_long, report=check.encoding)
        return [] if pair is None else list(pair.sequences())

    for example in read(path, format, columns=columns, report=check.report):
        check.num_preferences += example.rejected is not None
        check.count_other_keys(example)
        sequences: list[Encoded] = []
        if model is not None:
            before = check.report.num_problems
            with noting_problems(example, check.report):
                sequences = encoded(example)
            if check.report.num_problems > before:
                check.report.num_examples -= 1
                continue
            check.lengths.extend(len(sequence.token_ids) for sequence in sequences)
        if len(check.shown) < show:
            check.shown.append(Shown(example, sequences))
    if not (check.report.num_examples or check.report.num_problems):
        raise TrainingDataError(f"{path} holds no record: there is nothing to train on.")
    return check


def percentile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least ``share`` of all are not above (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)
    return ordered[max(0, min(len(ordered) - 1, int(rank) - 1))]
