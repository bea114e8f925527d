"""The objective: every token that was taken out is predicted once, and seen by nobody before."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimmer.errors import InvalidParameterError
from glimmer.training.blank_infilling import (
    IGNORED,
    KINDS,
    PADDING,
    BlankTokens,
    IntArray,
    Kind,
    Objective,
    Piece,
    Row,
    corrupt,
    pack,
)
from tests.support import families
from tests.support.reference import Network

TOKENS = BlankTokens(mask=1, smask=2, gmask=3, start=4, end=5)
FIRST = 6
VOCAB = 40


@functools.cache
def network() -> Network:
    """ChatGLM-6B's kind of network in float64: what it computes is exact to its last digits."""
    architecture = families.tiny_architecture(
        "chatglm", vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    return Network(architecture, families.tiny_weights(architecture), "float64", {})


def predictions(row: Row) -> Any:
    """Logits [length, vocab_size]."""
    return network().logits_at(row.token_ids, row.positions, row.attention_mask())


TEXTS = st.lists(st.integers(FIRST, VOCAB - 1), min_size=1, max_size=80)
OBJECTIVES = st.builds(
    Objective,
    masked_share=st.sampled_from([0.05, 0.15, 0.5, 1.0]),
    mean_span_length=st.sampled_from([0.5, 3.0, 8.0]),
    gmask_share=st.sampled_from([(0.5, 1.0), (0.1, 0.2), (1.0, 1.0)]),
    shuffle=st.booleans(),
)


@st.composite
def pieces(draw: st.DrawFn, texts: st.SearchStrategy[list[int]] = TEXTS) -> tuple[Any, Piece]:
    text = draw(texts)
    ends = draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    objective, kind = draw(OBJECTIVES), draw(st.sampled_from(KINDS))
    piece = corrupt(text, objective, TOKENS, rng, sentence_ends=np.array(ends), kind=kind)
    assert piece.length <= objective.longest(len(text))
    return text, piece


def fillings(row: Row, number: int) -> dict[int, list[int]]:
    """Of one piece of a row, by the places of its blanks in Part A: what is predicted for them."""
    own = row.pieces == number
    found: dict[int, list[int]] = {}
    for place in np.flatnonzero(own & ~row.is_context):
        blank, offset = row.positions[:, place]
        read = found.setdefault(int(blank), [])
        # In order, from the start token on; each is what the place before had to predict.
        assert offset == len(read) + 1
        if offset == 1:
            assert row.token_ids[place] == TOKENS.start
        else:
            assert row.token_ids[place] == row.targets[place - 1] == read[-1]
        read.append(int(row.targets[place]))
    for read in found.values():
        assert read.pop() == TOKENS.end
    return found


@given(st.lists(pieces(), min_size=1, max_size=4), st.integers(0, 20))
def test_what_was_taken_out_is_predicted_once_and_the_text_can_be_rebuilt(
    made: list[tuple[list[int], Piece]], padding: int
) -> None:
    length = sum(piece.length for _, piece in made) + padding
    row = pack([piece for _, piece in made], TOKENS, length, pad_id=0)
    assert len(row.token_ids) == length
    for number, (text, piece) in enumerate(made):
        context = row.token_ids[(row.pieces == number) & row.is_context].tolist()
        blanks = [i for i, token in enumerate(context) if token < FIRST]
        assert {context[i] for i in blanks} <= {TOKENS.blank(piece.kind)}
        found = fillings(row, number)
        assert sorted(found) == blanks
        rebuilt = [t for i, token in enumerate(context) for t in found.get(i, [token])]
        assert rebuilt == text == piece.restored().tolist()
    # Nothing in Part A or padding is predicted.
    outside = row.is_context | (row.pieces == PADDING)
    assert (row.targets[outside] == IGNORED).all()
    assert (row.targets[~outside] != IGNORED).all()
    assert (row.token_ids[row.pieces == PADDING] == 0).all()


@given(st.lists(pieces(), min_size=1, max_size=3))
def test_positions_restart_and_nobody_sees_the_future(made: list[tuple[Any, Piece]]) -> None:
    row = pack([piece for _, piece in made], TOKENS, pad_id=0)
    mask = row.attention_mask()
    for number, (_, piece) in enumerate(made):
        own = np.flatnonzero(row.pieces == number)
        a, b = own[: len(piece.context)], own[len(piece.context) :]
        assert row.positions[0, a].tolist() == list(range(len(a)))
        assert not row.positions[1, a].any()
        assert mask[np.ix_(a, a)].all()
        assert not mask[np.ix_(a, b)].any()
        assert mask[np.ix_(b, a)].all()
        assert (mask[np.ix_(b, b)] == np.tri(len(b), dtype=bool)).all()
        others = np.flatnonzero(row.pieces != number)
        assert not mask[np.ix_(own, others)].any()


SHORT = st.lists(st.integers(FIRST, VOCAB - 1), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.lists(pieces(SHORT), min_size=1, max_size=3))
def test_no_prediction_moves_that_must_not_see_a_token(made: list[tuple[Any, Piece]]) -> None:
    """For every place of Part B: another token there changes what is predicted from there on in
    this piece, and nothing else; least of all the prediction of that token."""
    row = pack([piece for _, piece in made], TOKENS, pad_id=0)
    before = predictions(row)
    for place in np.flatnonzero(~row.is_context):
        token_ids = row.token_ids.copy()
        token_ids[place] = FIRST + (token_ids[place] + 1) % (VOCAB - FIRST)
        after = network().logits_at(token_ids, row.positions, row.attention_mask())
        moved = np.abs(after - before).max(axis=1) > 1e-6
        may_see = (row.pieces == row.pieces[place]) & (np.arange(len(moved)) >= place)
        assert not moved[~may_see].any()
        assert moved[place], "a token changes what is predicted behind it"


@settings(max_examples=25, deadline=None)
@given(st.lists(pieces(), min_size=2, max_size=3), st.integers(0, 5))
def test_packing_changes_no_prediction(made: list[tuple[Any, Piece]], padding: int) -> None:
    alone = [piece for _, piece in made]
    row = pack(alone, TOKENS, sum(piece.length for piece in alone) + padding, pad_id=0)
    together = predictions(row)
    assert np.isfinite(together).all(), "padding attends to something"
    for number, piece in enumerate(alone):
        own = predictions(pack([piece], TOKENS))
        np.testing.assert_allclose(together[row.pieces == number], own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_blank_stands_where_the_engine_puts_it(kind: Kind) -> None:
    """As the official code has it: see ``get_position_ids`` of modeling_chatglm.py."""
    from dataclasses import replace

    from glimmer.architecture import Blanks

    blanks = Blanks(start_id=TOKENS.start, blank_ids=(TOKENS.gmask, TOKENS.mask, TOKENS.smask))
    architecture = replace(network().a, blanks=blanks)
    text = np.arange(FIRST, FIRST + 8)
    ends = np.array([False] * 7 + [True])
    rng = np.random.default_rng(1)
    objective = Objective(masked_share=0.05, gmask_share=(0.5, 0.5))
    row = pack([corrupt(text, objective, TOKENS, rng, sentence_ends=ends, kind=kind)], TOKENS)
    assert np.count_nonzero(row.targets == TOKENS.end) == 1
    layout = architecture.layout(row.token_ids.tolist())
    assert row.positions.tolist() == [list(layout.positions), list(layout.block_positions or ())]
    assert layout.context_length == np.count_nonzero(row.is_context)


def drawn(objective: Objective, count: int, length: int = 200) -> list[Piece]:
    """Of texts whose every tenth token ends a sentence."""
    rng = np.random.default_rng(20231124)
    text, ends = np.full(length, FIRST), np.arange(length) % 10 == 9
    return [corrupt(text, objective, TOKENS, rng, sentence_ends=ends) for _ in range(count)]


def span_lengths(found: Sequence[Piece]) -> IntArray:
    return np.array([len(span.token_ids) for piece in found for span in piece.spans])


def test_proportions_are_those_configured() -> None:
    mix: dict[Kind, float] = {"mask": 3, "smask": 1, "gmask": 1}
    found = drawn(Objective(mix=mix), 2000)
    shares = {kind: sum(p.kind == kind for p in found) / len(found) for kind in KINDS}
    assert shares == pytest.approx({"mask": 0.6, "smask": 0.2, "gmask": 0.2}, abs=0.03)


@pytest.mark.parametrize("mean", [1.0, 3.0, 6.0])
def test_spans_have_the_mean_length_and_share_configured(mean: float) -> None:
    objective = Objective(mix={"mask": 1}, mean_span_length=mean)
    found = drawn(objective, 1500, length=400)
    lengths = span_lengths(found)
    assert lengths.mean() == pytest.approx(mean / (1 - np.exp(-mean)), rel=0.02)
    assert objective.true_mean_span_length == pytest.approx(mean / (1 - np.exp(-mean)))
    # At least 15 %, and on average half a span more.
    masked = np.array([sum(len(s.token_ids) for s in piece.spans) for piece in found])
    assert masked.min() >= 60
    assert masked.mean() < 60 + mean + 1
    # Poisson: the variance of untruncated lengths is their mean.
    second = (lengths.astype(float) ** 2).mean() * (1 - np.exp(-mean))
    assert second - mean**2 == pytest.approx(mean, rel=0.06)


def test_spans_lie_anywhere_and_are_shuffled() -> None:
    found = drawn(Objective(mix={"mask": 1}), 1500, length=100)
    hits = np.zeros(100)
    in_order = 0
    for piece in found:
        blanks = [span.blank for span in piece.spans]
        in_order += blanks == sorted(blanks)
        removed = 0  # by the spans before, each of which left a mask
        for span in sorted(piece.spans, key=lambda span: span.blank):
            start, length = span.blank + removed, len(span.token_ids)
            hits[start : start + length] += 1
            removed += length - 1
    share = hits / len(found)
    assert share.mean() == pytest.approx(0.165, abs=0.01)
    assert (np.abs(share[5:-5] - share.mean()) < 0.06).all()
    assert in_order < 0.1 * len(found)
    ordered = drawn(Objective(mix={"mask": 1}, shuffle=False), 50)
    for piece in ordered:
        blanks = [span.blank for span in piece.spans]
        assert blanks == sorted(blanks)


def test_whole_sentences_are_taken_out() -> None:
    found = drawn(Objective(mix={"smask": 1}), 300)
    assert set(span_lengths(found).tolist()) == {10}
    assert {len(piece.spans) for piece in found} == {3}  # 30 of 200 tokens
    taken = {int(span.blank) for piece in found for span in piece.spans}
    assert len(taken) > 15


def test_a_gmask_takes_the_end() -> None:
    found = drawn(Objective(mix={"gmask": 1}), 2000)
    lengths = span_lengths(found)
    assert len(lengths) == len(found)
    assert all(piece.context[-1] == TOKENS.gmask for piece in found)
    assert lengths.min() == 100
    assert lengths.max() == 200
    assert lengths.mean() == pytest.approx(150, abs=2)
    quarters = np.histogram(lengths, bins=4, range=(100, 200))[0] / len(found)
    assert quarters == pytest.approx([0.25] * 4, abs=0.04)


def test_the_same_seed_gives_the_same_pieces() -> None:
    first, second = (drawn(Objective(), 20) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.kind == b.kind
        assert a.context.tolist() == b.context.tolist()
        assert [s.token_ids.tolist() for s in a.spans] == [s.token_ids.tolist() for s in b.spans]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mix": {"mask": -1}}, "none below 0"),
        ({"mix": {}}, "mix must be"),
        ({"mix": {"word": 1}}, "proportions of mask, smask, gmask"),
        ({"mix": {"mask": 0, "gmask": 0}}, "and one above"),
        ({"masked_share": 0}, "above 0 and at most 1, but it is 0"),
        ({"mean_span_length": 0}, "mean_span_length"),
        ({"gmask_share": (0.9, 0.5)}, "a smallest and a largest"),
    ],
)
def test_wrong_objectives(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said):
        Objective(**values)


def test_wrong_texts() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidParameterError, match="at least one token"):
        corrupt([], Objective(), TOKENS, rng)
    with pytest.raises(InvalidParameterError, match="sentence_ends must mark"):
        corrupt([7, 8], Objective(), TOKENS, rng, kind="smask")
    piece = corrupt([7, 8, 9], Objective(), TOKENS, rng, kind="gmask")
    with pytest.raises(InvalidParameterError, match="but it holds 3"):
        pack([piece], TOKENS, 3)
    with pytest.raises(InvalidParameterError, match="The 0 texts"):
        pack([], TOKENS)
