"""GLM's training objective: texts with blanks, and what fills them. Knows no text and no torch.

Sources: GLM (arXiv 2103.10360, sections 2.1 and 2.2) and its code's ``ConstructBlockStrategy``;
GLM-130B (arXiv 2210.02414, section 2.2) for [MASK] and [gMASK] beside each other; and, for what
ChatGLM-6B sees, the official ``get_masks`` and ``get_position_ids``, which
``glimmer.architecture.span_layout`` follows here as well as in the engine.

A text is cut into Part A, the text with a mask token in place of each span that was taken out, and
Part B, these spans one after another in random order::

    text     x1 x2 x3 x4 x5 x6                 spans x3 and x5 x6
    A        x1 x2 [M] x4 [M]
    B                         <sop> x5 x6      <sop> x3
    targets  -- -- -- -- --   x5    x6 <eop>   x3    <eop>
    row 0    0  1  2  3  4    4     4  4       2     2        the span's mask in A
    row 1    0  0  0  0  0    1     2  3       1     2        the place in the span

A sees all of A; B sees A, and of B what stands before. What is predicted stands at no place that
sees it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from glimmer.architecture import span_layout
from glimmer.errors import InvalidParameterError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

IGNORED = -100
"""The target of a place where nothing is predicted."""
PADDING = -1
"""The piece to which padding belongs."""

Kind = Literal["mask", "smask", "gmask"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlankTokens:
    """Ids of the tokens that lay out a text: [MASK], [sMASK], [gMASK], <sop> and <eop>."""

    mask: int
    smask: int
    gmask: int
    start: int
    end: int

    def blank(self, kind: Kind) -> int:
        """The token that stands for what was taken out."""
        return {"mask": self.mask, "smask": self.smask, "gmask": self.gmask}[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is taken out of a text.

    * "mask": short spans, of Poisson distributed length (never 0), until ``masked_share`` of the
      tokens are out.
    * "smask": whole sentences, until ``masked_share`` of the tokens are out.
    * "gmask": one span at the end, of a share of the text that is uniform in ``gmask_share``.

    ``mix`` gives the proportions of the three among texts.

    Raises:
        InvalidParameterError: a value out of its range.
    """

    mix: Mapping[Kind, float] = field(
        default_factory=lambda: MappingProxyType({"mask": 0.5, "smask": 0.2, "gmask": 0.3})
    )
    masked_share: float = 0.15
    mean_span_length: float = 3.0
    """Of the Poisson distribution; without its zeros the mean is 3.16."""
    gmask_share: tuple[float, float] = (0.5, 1.0)
    shuffle: bool = True
    """Whether Part B has its spans in random order; else in the order of the text."""

    def __post_init__(self) -> None:
        low, high = self.gmask_share
        total = sum(self.mix.values())
        rules = {
            "mix": (
                set(self.mix) <= set(KINDS) and min(self.mix.values(), default=-1) >= 0 < total,
                f"proportions of {', '.join(KINDS)}, none below 0 and one above",
            ),
            "masked_share": (0 < self.masked_share <= 1, "above 0 and at most 1"),
            # Lengths are drawn until one is not 0, which takes ever longer towards 0.
            "mean_span_length": (0.1 <= self.mean_span_length <= 100, "from 0.1 to 100"),
            "gmask_share": (0 < low <= high <= 1, "a smallest and a largest share, 0 to 1"),
        }
        for name, (is_allowed, allowed) in rules.items():
            if not is_allowed:
                value = getattr(self, name)
                value = dict(value) if isinstance(value, Mapping) else value
                raise InvalidParameterError(f"{name} must be {allowed}, but it is {value}.")

    @property
    def takes_several(self) -> bool:
        """Whether there are texts of which several spans are taken out."""
        return any(self.mix.get(kind, 0) > 0 for kind in ("mask", "smask"))

    @property
    def true_mean_span_length(self) -> float:
        """Mean of the Poisson distribution without its zeros."""
        return self.mean_span_length / -math.expm1(-self.mean_span_length)

    def most_spans(self, length: int) -> int:
        """A bound on the spans that the mix takes out of a text, so that its place is known before
        they are drawn: half as many again as there are on average, and two more. It is hardly ever
        reached."""
        if not self.takes_several:
            return 1
        wanted = self.masked_share * length
        return min(math.ceil(1.5 * wanted / self.true_mean_span_length) + 2, max(length, 1))

    def longest(self, length: int) -> int:
        """Tokens that a text of this length takes at most in a row: two more for each span."""
        return length + 2 * self.most_spans(length)


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    blank: int
    """Index of its mask token in Part A."""
    token_ids: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One text with blanks, and what fills them in the order of Part B."""

    kind: Kind
    context: IntArray
    """Part A."""
    spans: tuple[Span, ...]

    @property
    def length(self) -> int:
        """Tokens of both parts."""
        return len(self.context) + sum(len(span.token_ids) + 1 for span in self.spans)

    def restored(self) -> IntArray:
        """The text that it was made of."""
        pieces: list[IntArray] = []
        last = 0
        for span in sorted(self.spans, key=lambda span: span.blank):
            pieces += [self.context[last : span.blank], span.token_ids]
            last = span.blank + 1
        return np.concatenate([*pieces, self.context[last:]])


def corrupt(
    token_ids: npt.ArrayLike,
    objective: Objective,
    tokens: BlankTokens,
    rng: np.random.Generator,
    *,
    sentence_ends: BoolArray | None = None,
    kind: Kind | None = None,
) -> Piece:
    """Take spans out of a text; ``kind`` is drawn from the mix unless given.

    ``sentence_ends`` [len(token_ids)] marks the tokens that end a sentence; "smask" needs it.

    Raises:
        InvalidParameterError: no token, or no marks where they are needed.
    """
    ids = np.asarray(token_ids, np.int64)
    if ids.ndim != 1 or len(ids) == 0:
        raise InvalidParameterError("A text to learn from needs at least one token.")
    if kind is None:
        names = [name for name in KINDS if objective.mix.get(name, 0) > 0]
        weights = np.array([objective.mix[name] for name in names], np.float64)
        kind = names[rng.choice(len(names), p=weights / weights.sum())]
    if kind == "gmask":
        bounds = [gmask_span(len(ids), objective, rng)]
    elif kind == "mask":
        bounds = short_spans(len(ids), objective, rng)
    else:
        if sentence_ends is None or len(sentence_ends) != len(ids):
            raise InvalidParameterError(
                "Sentences are taken out by the tokens that end them: sentence_ends must mark "
                "them, one value for each token."
            )
        bounds = sentence_spans(sentence_ends, objective, rng)
    return _cut(ids, bounds, kind, objective, tokens, rng)


def short_spans(
    length: int, objective: Objective, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Spans ``(start, end)`` in order, a token at least between any two.

    All arrangements of the lengths that were drawn are equally likely.
    """
    lengths: list[int] = []
    masked, wanted = 0, max(1, math.ceil(objective.masked_share * length))
    while masked < wanted and len(lengths) < objective.most_spans(length):
        room = length - masked - len(lengths)  # a token between it and each of the others
        if room < 1:
            break
        drawn = 0
        while drawn == 0:
            drawn = int(rng.poisson(objective.mean_span_length))
        lengths.append(min(drawn, room))
        masked += lengths[-1]
    rng.shuffle(lengths)
    places = len(lengths) + length - masked - (len(lengths) - 1)
    chosen = np.sort(rng.choice(places, size=len(lengths), replace=False))
    bounds, before = [], 0
    for place, span_length in zip(chosen.tolist(), lengths, strict=True):
        bounds.append((place + before, place + before + span_length))
        before += span_length
    return bounds


def sentence_spans(
    sentence_ends: BoolArray, objective: Objective, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Whole sentences ``(start, end)`` in order; what follows the last end is one as well."""
    length = len(sentence_ends)
    ends = (np.flatnonzero(sentence_ends) + 1).tolist()
    if not ends or ends[-1] != length:
        ends.append(length)
    sentences = list(zip([0, *ends[:-1]], ends, strict=True))
    wanted = max(1, math.ceil(objective.masked_share * length))
    chosen: list[tuple[int, int]] = []
    for index in rng.permutation(len(sentences)).tolist():
        if sum(end - start for start, end in chosen) >= wanted:
            break
        if len(chosen) == objective.most_spans(length):
            break
        chosen.append(sentences[index])
    return sorted(chosen)


def gmask_span(length: int, objective: Objective, rng: np.random.Generator) -> tuple[int, int]:
    """The end of a text, from its half to all of it unless configured otherwise."""
    share = rng.uniform(*objective.gmask_share)
    return length - min(max(round(share * length), 1), length), length


def _cut(
    ids: IntArray,
    bounds: Sequence[tuple[int, int]],
    kind: Kind,
    objective: Objective,
    tokens: BlankTokens,
    rng: np.random.Generator,
) -> Piece:
    blank = np.array([tokens.blank(kind)], np.int64)
    context: list[IntArray] = []
    spans: list[Span] = []
    last = length = 0
    for start, end in bounds:
        context += [ids[last:start], blank]
        length += start - last + 1
        spans.append(Span(length - 1, ids[start:end]))
        last = end
    order = rng.permutation(len(spans)).tolist() if objective.shuffle else range(len(spans))
    whole = np.concatenate([*context, ids[last:]])
    return Piece(kind, whole, tuple(spans[i] for i in order))


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Pieces beside each other, none of which sees another; positions restart in each."""

    token_ids: IntArray
    """[length]"""
    positions: IntArray
    """[2, length]: see the picture above."""
    targets: IntArray
    """[length]: what each place predicts, not shifted; ``IGNORED`` where nothing is."""
    pieces: IntArray
    """[length]: which piece each place belongs to; ``PADDING`` behind the last."""
    is_context: BoolArray
    """[length]: Part A."""
    kinds: IntArray
    """[length]: index in ``KINDS`` of the piece's kind; 0 in padding."""

    def attention_mask(self) -> BoolArray:
        """[length, length], True where the row's place may attend to the column's.

        Padding attends to padding, since a softmax over nothing is no number.
        """
        order = np.arange(len(self.token_ids))
        same = self.pieces[:, None] == self.pieces[None, :]
        return np.asarray(same & (self.is_context[None, :] | (order[None, :] <= order[:, None])))


def pack(
    pieces: Sequence[Piece], tokens: BlankTokens, length: int | None = None, *, pad_id: int = 0
) -> Row:
    """One row of all pieces, with padding up to ``length``.

    Raises:
        InvalidParameterError: they take more than ``length``, or there is none.
    """
    taken = sum(piece.length for piece in pieces)
    length = taken if length is None else length
    if not pieces or taken > length:
        raise InvalidParameterError(
            f"The {len(pieces)} texts of a row take {taken} tokens, but it holds {length}."
        )
    columns: dict[str, list[Any]] = {name: [] for name in Row.__slots__ if name != "positions"}
    positions: list[IntArray] = []
    for number, piece in enumerate(pieces):
        layout = span_layout(
            len(piece.context), [(span.blank, len(span.token_ids) + 1) for span in piece.spans]
        )
        positions.append(np.array([layout.positions, layout.block_positions], np.int64))
        columns["token_ids"].append(piece.context)
        columns["targets"].append(np.full(len(piece.context), IGNORED))
        for span in piece.spans:
            columns["token_ids"] += [[tokens.start], span.token_ids]
            columns["targets"] += [span.token_ids, [tokens.end]]
        columns["pieces"].append(np.full(piece.length, number))
        columns["is_context"].append(np.arange(piece.length) < len(piece.context))
        columns["kinds"].append(np.full(piece.length, KINDS.index(piece.kind)))
    empty = {
        "token_ids": pad_id,
        "targets": IGNORED,
        "pieces": PADDING,
        "is_context": False,
        "kinds": 0,
    }
    for name, column in columns.items():
        column.append(np.full(length - taken, empty[name]))
    positions.append(np.zeros((2, length - taken), np.int64))
    return Row(
        positions=np.concatenate(positions, axis=1),
        is_context=np.concatenate(columns.pop("is_context")).astype(np.bool_),
        **{name: np.concatenate(column).astype(np.int64) for name, column in columns.items()},
    )
