"""Training files become rows of token ids and labels, split and packed. Knows no torch."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from glimmer.errors import InvalidParameterError, TrainingDataError
from glimmer.training.config import FinetuneConfig
from glimmer.training.data import (
    IGNORED,
    Columns,
    EncodingReport,
    Example,
    encode,
    encode_pair,
    noting_problems,
    read,
)
from glimmer.training.text import TextSide

Row = dict[str, Any]
"""``input_ids``, ``labels`` (sft), or ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` (dpo)."""
_OPEN_PACKS = 64


@dataclass(frozen=True)
class TrainingRows:
    """The rows of each example, in the files' order."""

    examples: list[list[Row]]
    num_cut: int = 0
    """Rows of these files that lost their end, for they were too long."""
    num_skipped: int = 0
    """Rows that were left out for it."""

    @cached_property
    def rows(self) -> list[Row]:
        return [row for rows in self.examples for row in rows]

    @cached_property
    def sha256(self) -> str:
        """Of all ids and labels, so that it stands for text, template and tokenizer alike."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def num_tokens(self) -> int:
        return sum(len(ids) for row in self.rows for key, ids in row.items() if key != "labels")

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(
            len(row["input_ids"])
            if "input_ids" in row
            else len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            for row in self.rows
        )

    @property
    def num_trained_tokens(self) -> int:
        """Tokens that a loss is taken of."""
        return sum(
            sum(label != IGNORED for label in row["labels"])
            if "labels" in row
            else len(row["chosen_ids"]) + len(row["rejected_ids"])
            for row in self.rows
        )

    def split(self, share: float, seed: int) -> tuple[TrainingRows, TrainingRows]:
        """All but a share of the examples, and that share: at least one, whole examples.

        Raises:
            InvalidParameterError: nothing is left to train on.
        """
        count = max(1, round(len(self.examples) * share))
        if count >= len(self.examples):
            raise InvalidParameterError(
                f"There are {len(self.examples)} examples, so an eval_share of {share} leaves "
                "nothing to train on. Add examples, or leave eval_share out."
            )
        held_out = set(random.Random(seed).sample(range(len(self.examples)), count))
        kept = [rows for i, rows in enumerate(self.examples) if i not in held_out]
        return (
            TrainingRows(kept, self.num_cut, self.num_skipped),
            TrainingRows([self.examples[i] for i in sorted(held_out)]),
        )


def read_rows(files: Sequence[Path], config: FinetuneConfig, text: TextSide) -> TrainingRows:
    """The rows of all examples: answers, or pairs of them where ``config`` asks for dpo.

    Raises:
        TrainingDataError: a file that is none, a record that is broken or has no token that could
            be trained on, or no example at all.
        InvalidParameterError: a text is longer than the model can be, and max_length allows it.
    """
    columns = Columns(config.prompt_column, config.response_column, config.history_column)
    examples: list[list[Row]] = []
    num_cut = num_skipped = 0
    for file in files:
        report = EncodingReport()
        for example in read(file, config.data_format, columns=columns, report=report):
            with noting_problems(example, report):
                rows = _rows(example, config, text, report)
                examples += [rows] if rows else []
        report.raise_problems(file)
        num_cut += report.num_cut
        num_skipped += report.num_skipped
    if not examples:
        names = ", ".join(map(str, files))
        left_out = f" {num_skipped} are longer than max_length ({config.max_length})."
        raise TrainingDataError(
            f"{names}: there is no example to train on.{left_out if num_skipped else ''}"
        )
    made = TrainingRows(examples, num_cut, num_skipped)
    if made.longest > (most := text.architecture.max_position):
        raise InvalidParameterError(
            f"There is a text of {made.longest} tokens, but the model was built for {most}. Set "
            f"max_length to {most}: longer texts then lose their end, or are left out (too_long)."
        )
    return made


def _rows(
    example: Example, config: FinetuneConfig, text: TextSide, report: EncodingReport
) -> list[Row]:
    given: tuple[Any, ...] = (example, text.chat, text.tokenizer, config.max_length)
    if config.objective == "dpo":
        pair = encode_pair(*given, too_long=config.too_long, report=report)
        return [] if pair is None else [asdict(pair)]
    return [
        {"input_ids": encoded.token_ids, "labels": encoded.labels}
        for encoded in encode(*given, too_long=config.too_long, report=report)
    ]


def pack(rows: Iterable[Row], max_length: int) -> list[Row]:
    """Rows that hold several: ``{"parts": [row, ...]}``, each of ``max_length`` tokens at most.

    Each row goes to the fullest of the last few packs that has room for it.
    """
    packs: list[list[Row]] = []
    room: dict[int, int] = {}
    for row in rows:
        length = len(row["input_ids"])
        fitting = [i for i, left in room.items() if left >= length]
        if fitting:
            chosen = min(fitting, key=room.__getitem__)
        else:
            chosen = len(packs)
            packs.append([])
            room[chosen] = max_length
            if len(room) > _OPEN_PACKS:
                del room[min(room, key=room.__getitem__)]
        packs[chosen].append(row)
        if chosen in room:
            room[chosen] -= length
    return [{"parts": parts} for parts in packs]
