"""Texts as documents, documents as tokens, tokens as rows to train on. Knows no torch.

Everything is drawn from the seed and the row's number alone: which texts share a row, in which
order rows come, and what is taken out of them. So a run that goes on from a checkpoint sees what
it would have seen, wherever it stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glimmer.errors import InvalidParameterError, ModelNotFoundError
from glimmer.tokenizers import Tokenizer
from glimmer.training.blank_infilling import (
    BlankTokens,
    BoolArray,
    Kind,
    Objective,
    Row,
    corrupt,
    pack,
)

MIN_DOCUMENT_TOKENS = 4
"""Shorter ones leave nothing to predict by."""
_OPEN_ROWS = 64
"""Rows that are being packed at a time: what fits into none of them begins another."""
_SENTENCE_MARKS = ".?!;"
_OTHER_MARKS = "。？！；…"


def read_documents(paths: Sequence[Path], text_field: str) -> Iterator[str]:
    """The texts of files in the order given, those of a folder by name; left out are empty ones,
    and in a folder what is hidden (.git).

    Raises:
        ModelNotFoundError: no such file.
        InvalidParameterError: not UTF-8, or a line of a .jsonl file without the field.
    """
    for path in paths:
        if path.is_dir():
            yield from read_documents(sorted(_inside(path)), text_field)
        elif not path.is_file():
            raise ModelNotFoundError(f"There is no file or folder {path} to read texts from.")
        elif path.suffix == ".jsonl":
            yield from _read_lines(path, text_field)
        elif (text := _read_text(path)).strip():
            yield text


def _inside(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(n.startswith(".") for n in path.relative_to(folder).parts):
            yield path


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # without a byte order mark
    except UnicodeDecodeError as error:
        raise InvalidParameterError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}. "
            "Convert it (iconv -f GB18030 -t UTF-8 for Chinese files of Windows), or leave it out."
        ) from error


def _read_lines(path: Path, text_field: str) -> Iterator[str]:
    # Not splitlines: JSON strings may hold other line separators.
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InvalidParameterError(f"{path}, line {number}, is not JSON: {error}.") from error
        text = value.get(text_field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            found = ", ".join(map(repr, value)) if isinstance(value, dict) else repr(value)
            raise InvalidParameterError(
                f"{path}, line {number}, must be an object with text in {text_field!r}, but it has "
                f"{found:.200}. Name the field with text_field."
            )
        if re.search(r"[\ud800-\udfff]", text):
            raise InvalidParameterError(
                f"{path}, line {number}, has half of a surrogate pair (\\ud800 and its like), "
                "which is no character."
            )
        if text.strip():
            yield text


@dataclass(frozen=True, slots=True)
class SentenceMarks:
    """Tells, from tokens alone, where sentences end.

    A token ends one if it is a new line or ends with a mark; behind an ASCII mark a space or a
    letter beyond ASCII must follow, since "os.path" is no end and the tokenizer makes ！ an ASCII
    mark. (GLM's ``contains_sentence_end`` asks for the mark alone.)
    """

    ends: BoolArray
    """Of each token of the vocabulary, as the others: whether it ends a sentence,"""
    may_end: BoolArray
    """whether it does before the right token,"""
    may_follow: BoolArray
    """and whether it is one."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SentenceMarks:
        written = [
            tokenizer.token_bytes(i).decode("utf-8", "replace") for i in range(tokenizer.vocab_size)
        ]
        return cls(
            np.array([w.endswith(("\n", *_OTHER_MARKS)) for w in written]),
            np.array([w.rstrip("\"')]").endswith(tuple(_SENTENCE_MARKS)) for w in written]),
            np.array([w[:1].isspace() or w[:1] > "~" for w in written]),
        )

    def mark(self, token_ids: npt.NDArray[np.integer]) -> BoolArray:
        """Whether each token ends a sentence."""
        follows = np.ones(len(token_ids), np.bool_)
        follows[:-1] = self.may_follow[token_ids[1:]]
        return np.asarray(self.ends[token_ids] | (self.may_end[token_ids] & follows))


class Corpus:
    """Documents in tokens, cut into texts that fit into a row."""

    def __init__(
        self,
        documents: Sequence[npt.NDArray[np.int32]],
        marks: SentenceMarks,
        objective: Objective,
        row_length: int,
        *,
        name: str = "texts",
    ) -> None:
        """``name`` is what errors call the documents.

        Raises:
            InvalidParameterError: no document is long enough.
        """
        self._marks = marks
        longest = max(n for n in range(1, row_length + 1) if objective.longest(n) <= row_length)
        self.texts = [
            text
            for document in documents
            if len(document) >= MIN_DOCUMENT_TOKENS
            for text in _cut(document, marks, longest)
        ]
        if not self.texts:
            raise InvalidParameterError(
                f"The {name} hold no document of {MIN_DOCUMENT_TOKENS} tokens, but shorter ones "
                "leave nothing to predict by."
            )
        self.num_tokens = sum(map(len, self.texts))

    def sentence_ends(self, number: int) -> BoolArray:
        return self._marks.mark(self.texts[number])

    def counts(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """How often each token occurs, [vocab_size]."""
        total = np.zeros(vocab_size, np.int64)
        for text in self.texts:
            total += np.bincount(text, minlength=vocab_size)
        return total


def _cut(
    document: npt.NDArray[np.int32], marks: SentenceMarks, longest: int
) -> Iterator[npt.NDArray[np.int32]]:
    """Pieces of at most ``longest`` tokens, at the end of a sentence if one ends in the last
    quarter of a piece."""
    ends = marks.mark(document)
    start = 0
    while len(document) - start > longest:
        end = start + longest
        last = np.flatnonzero(ends[end - longest // 4 : end])
        if len(last):
            end += int(last[-1]) + 1 - longest // 4
        yield document[start:end]
        start = end
    if len(document) - start >= MIN_DOCUMENT_TOKENS or start == 0:
        yield document[start:]


@lru_cache(maxsize=2)
def _order(seed: int, number: int, count: int) -> tuple[int, ...]:
    """Of the rows in one pass."""
    return tuple(np.random.default_rng([seed, 1, number]).permutation(count).tolist())


@dataclass(frozen=True)
class TrainingRows:
    """Rows without end: each pass over the texts has another order and other blanks."""

    corpus: Corpus
    objective: Objective
    tokens: BlankTokens
    row_length: int
    pad_id: int
    seed: int
    kind: Kind | None = None
    """What is taken out of every text; None for the mix."""

    @cached_property
    def packed(self) -> list[list[int]]:
        """Which texts share a row, as first fit finds them in random order."""
        order = np.random.default_rng([self.seed, 0]).permutation(len(self.corpus.texts))
        rows: list[list[int]] = []
        room: list[tuple[int, list[int]]] = []  # of the rows that are open
        for number in order.tolist():
            needed = self.objective.longest(len(self.corpus.texts[number]))
            place = next((i for i, (left, _) in enumerate(room) if left >= needed), None)
            if place is None:
                row: list[int] = []
                rows.append(row)
                room = [*room[-_OPEN_ROWS + 1 :], (self.row_length, row)]
                place = len(room) - 1
            left, row = room[place]
            row.append(number)
            room[place] = (left - needed, row)
        return rows

    @property
    def rows_per_pass(self) -> int:
        return len(self.packed)

    def row(self, index: int) -> Row:
        """Number ``index`` of all rows that there ever are."""
        number, place = divmod(index, len(self.packed))
        chosen = _order(self.seed, number, len(self.packed))[place]
        rng = np.random.default_rng([self.seed, 2, number, chosen])
        pieces = [
            corrupt(
                self.corpus.texts[text],
                self.objective,
                self.tokens,
                rng,
                sentence_ends=self.corpus.sentence_ends(text),
                kind=self.kind,
            )
            for text in self.packed[chosen]
        ]
        return pack(pieces, self.tokens, self.row_length, pad_id=self.pad_id)
