"""Weight names as data: canonical names of ``Architecture.weight_shapes`` <-> tensors in a file.

Files differ in names and in what they keep together: queries, keys and values as one tensor, gate
and up as one, all experts as one. A ``Piece`` says which rows of which tensor a canonical weight
is; the same table loads and exports. Patterns hold ``{layer}`` and ``{expert}`` for numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from glimmer.architecture import Architecture, Experts

RowRange = tuple[int, int]
"""First row and the one after the last."""


@dataclass(frozen=True, slots=True)
class Piece:
    """All of a tensor, or the rows of it that ``rows`` gives, in order."""

    tensor: str
    rows: Callable[[Architecture, int], tuple[RowRange, ...]] | None = None
    """Architecture and number of the expert (0 where there is none) -> ranges."""
    stacked: bool = False
    """Whether the tensor holds one matrix per expert, ``[experts, out, in]``."""

    def row_ranges(self, a: Architecture, canonical: str) -> tuple[RowRange, ...] | None:
        """The rows that are the weight of this canonical name; None for all."""
        return None if self.rows is None else self.rows(a, split_name(canonical)[2])


@dataclass(frozen=True, slots=True)
class PrefixEncoder:
    """Tensors from which P-Tuning v2 makes the prefix: an embedding, and perhaps two layers.

    Formula: PrefixEncoder in the official modeling_chatglm.py.
    """

    embedding: str
    first: str
    second: str
    embedding_is_hidden: bool = False
    """Whether rows that the two layers widen are as wide as the network's hidden states, or as wide
    as all keys and values."""


OFFICIAL_PREFIX = PrefixEncoder(
    embedding="transformer.prefix_encoder.embedding.weight",
    first="transformer.prefix_encoder.trans.0",
    second="transformer.prefix_encoder.trans.2",
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one kind of file names and cuts the weights."""

    name: str
    container: Literal["gguf", "folder"]
    pieces: Mapping[str, Piece | tuple[Piece, ...]]
    """Canonical pattern -> where it lies; of several the first that the file has is taken."""
    row_scale: str | None = None
    """Suffix of the tensor with one scale per row, where weights may be stored as integers."""
    prefix_encoder: PrefixEncoder | None = None
    copies: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Tensors that repeat a canonical weight: not read, but written, as others expect them."""

    def pieces_of(self, canonical: str) -> tuple[Piece, ...]:
        """Where a canonical weight such as "layers.3.attn_q.weight" may lie, numbers filled in."""
        pattern, layer, expert = split_name(canonical)
        found = self.pieces.get(pattern, ())
        return tuple(
            Piece(p.tensor.format(layer=layer, expert=expert), p.rows, p.stacked)
            for p in (found if isinstance(found, tuple) else (found,))
        )


@dataclass(frozen=True, slots=True)
class WeightMap:
    layouts: tuple[Layout, ...]

    def layout(self, name: str) -> Layout | None:
        return next((layout for layout in self.layouts if layout.name == name), None)

    def candidates(self, container: str) -> Iterator[Layout]:
        return (layout for layout in self.layouts if layout.container == container)


_NUMBERED = re.compile(r"^layers\.(\d+)\.(?:experts\.(\d+)\.)?(.+)$")


def split_name(canonical: str) -> tuple[str, int, int]:
    """Pattern, layer and expert of a canonical name; 0 for a number that it does not have."""
    match = _NUMBERED.match(canonical)
    if match is None:
        return canonical, 0, 0
    layer, expert, rest = match.groups()
    if expert is None:
        return f"layers.{{layer}}.{rest}", int(layer), 0
    return f"layers.{{layer}}.experts.{{expert}}.{rest}", int(layer), int(expert)


def stacked_qkv(tensor: str) -> dict[str, Piece]:
    """attn_q, attn_k, attn_v: all query heads, then all key heads, then all value heads."""

    def rows(first: Callable[[int, int], int], last: Callable[[int, int], int]) -> Piece:
        def ranges(a: Architecture, _expert: int) -> tuple[RowRange, ...]:
            q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
            return ((first(q, kv), last(q, kv)),)

        return Piece(tensor, ranges)

    return {
        "attn_q": rows(lambda q, kv: 0, lambda q, kv: q),
        "attn_k": rows(lambda q, kv: q, lambda q, kv: q + kv),
        "attn_v": rows(lambda q, kv: q + kv, lambda q, kv: q + 2 * kv),
    }


def interleaved_qkv(tensor: str) -> dict[str, Piece]:
    """attn_q, attn_k, attn_v: for each head its query, key and value rows."""

    def part(index: int) -> Piece:
        def ranges(a: Architecture, _expert: int) -> tuple[RowRange, ...]:
            d = a.head_dim
            starts = range(index * d, a.num_heads * 3 * d, 3 * d)
            return tuple((start, start + d) for start in starts)

        return Piece(tensor, ranges)

    return {"attn_q": part(0), "attn_k": part(1), "attn_v": part(2)}


def gate_and_up(tensor: str) -> dict[str, Piece]:
    """mlp_gate and mlp_up: the first and the second half of one tensor."""

    def half(index: int) -> Piece:
        def ranges(a: Architecture, _expert: int) -> tuple[RowRange, ...]:
            f = a.intermediate_size
            return ((index * f, (index + 1) * f),)

        return Piece(tensor, ranges)

    return {"mlp_gate": half(0), "mlp_up": half(1)}


def expert_of(tensor: str, rows: Callable[[Experts, int], int]) -> Piece:
    """One expert's matrix in a tensor that holds those of all.

    ``rows`` gives its number of rows from the experts' numbers and the hidden size.
    """

    def ranges(a: Architecture, expert: int) -> tuple[RowRange, ...]:
        assert a.experts is not None
        count = rows(a.experts, a.hidden_size)
        return ((expert * count, (expert + 1) * count),)

    return Piece(tensor, ranges, stacked=True)


def in_layer(pieces: Mapping[str, Piece | str]) -> dict[str, Piece]:
    """Patterns of one layer: "layers.{layer}." before each canonical name."""
    return {
        "layers.{layer}." + name: Piece(piece) if isinstance(piece, str) else piece
        for name, piece in pieces.items()
    }


def with_parts(pieces: Mapping[str, Piece | str], *parts: str) -> dict[str, Piece]:
    """Each name and its tensor once for every part, such as ".weight" and ".bias"."""
    spread = {}
    for name, given in pieces.items():
        piece = Piece(given) if isinstance(given, str) else given
        for part in parts:
            spread[name + part] = Piece(piece.tensor + part, piece.rows, piece.stacked)
    return spread
