"""How the engine chooses a token from logits, against a model of it in numpy.

The order is: logit bias, penalties, temperature, min_p, top_k, top_p, draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimmer.architecture import Architecture, Rope
from glimmer.errors import InvalidParameterError
from glimmer.native import (
    KVCache,
    NativeModel,
    SamplingInput,
    StepResult,
    instruction_sets,
    sample,
)
from tests.support.tiny import Floats, Stream, TinyModel, random_weights, step_input

ISAS = instruction_sets()
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Row:
    """How one token is chosen; the fields of SamplingInput, history in its two parts."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    position: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    prompt: Sequence[int] = ()
    answer: Sequence[int] = ()
    bias: Mapping[int, float] = field(default_factory=dict)
    allowed: frozenset[int] | None = None


# --- the model of it


def adjusted(logits: Floats, row: Row) -> Doubles:
    """Logits after bias and penalties."""
    x: Doubles = logits.astype(np.float64)
    if row.allowed is not None:
        x[[token for token in range(len(x)) if token not in row.allowed]] = -np.inf
    for token, bias in row.bias.items():
        x[token] += bias
    for token in {*row.prompt, *row.answer}:
        penalty = row.repetition_penalty
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    for token in set(row.answer):
        x[token] -= row.presence_penalty + row.frequency_penalty * row.answer.count(token)
    return x


def probabilities(logits: Floats, row: Row, slack: float = 0.0) -> Doubles:
    """Of every token; ``slack`` widens what min_p and top_p keep."""
    x = adjusted(logits, row)
    if row.temperature == 0:
        certain: Doubles = np.eye(len(x))[x.argmax()]
        return certain
    p = np.exp((x - x.max()) / row.temperature)
    p[p < row.min_p - slack] = 0
    likeliest_first = np.argsort(-p, kind="stable")  # the lower id first among equals
    if row.top_k > 0:
        p[likeliest_first[row.top_k :]] = 0
    p /= p.sum()
    before = np.cumsum(p[likeliest_first]) - p[likeliest_first]
    p[likeliest_first[before >= row.top_p + slack]] = 0
    normalised: Doubles = p / p.sum()
    return normalised


# --- the engine, as a function from logits to tokens


def lookup_model(table: Floats | Doubles) -> TinyModel:
    """A model whose logits after token ``t`` are ``table[t]``, to the last bits."""
    num_rows, vocab_size = table.shape
    architecture = Architecture(
        vocab_size=vocab_size,
        hidden_size=num_rows,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        intermediate_size=1,
        max_position=1,
        rope=Rope(dims=2, base=1e4),
        norm_eps=1e-7,
    )
    weights = {name: np.zeros_like(w) for name, w in random_weights(architecture, 0).items()}
    np.fill_diagonal(weights["embedding.weight"], 1)  # the norm makes it sqrt(num_rows)
    weights["final_norm.weight"][:] = 1
    weights["head.weight"] = np.ascontiguousarray(table.T / np.sqrt(num_rows), np.float32)
    return TinyModel.of(architecture, weights)


def random_table(num_rows: int, vocab_size: int, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return 2 * rng.standard_normal((num_rows, vocab_size)).astype(np.float32)


def choose(
    engine: NativeModel, tokens: Sequence[int], rows: Sequence[Row], num_logprobs: int = -1
) -> StepResult:
    """One step of as many sequences of one token each; row ``i`` follows ``tokens[i]``."""
    cache = KVCache(engine, len(tokens))
    streams = [
        Stream(np.array([t], np.int32), np.array([i], np.int32)) for i, t in enumerate(tokens)
    ]
    sampling = sampling_input(rows, num_logprobs, engine.architecture.vocab_size)
    return engine.step(cache, step_input([(stream, 1) for stream in streams], sampling))


def sampling_input(
    rows: Sequence[Row], num_logprobs: int = -1, vocab_size: int = 0
) -> SamplingInput:
    def column(name: str, dtype: Any) -> npt.NDArray[Any]:
        return np.array([getattr(row, name) for row in rows], dtype)

    def flat(lists: Sequence[Sequence[Any]], dtype: Any) -> npt.NDArray[Any]:
        return np.array([x for items in lists for x in items], dtype)

    def offsets(lists: Sequence[Sequence[Any]]) -> npt.NDArray[np.int32]:
        return np.cumsum([0, *map(len, lists)], dtype=np.int32)

    histories = [[*row.prompt, *row.answer] for row in rows]
    biases = [[*row.bias.items()] for row in rows]
    return SamplingInput(
        temperature=column("temperature", np.float32),
        top_k=column("top_k", np.int32),
        top_p=column("top_p", np.float32),
        min_p=column("min_p", np.float32),
        seed=column("seed", np.uint64),
        position=column("position", np.int64),
        repetition_penalty=column("repetition_penalty", np.float32),
        presence_penalty=column("presence_penalty", np.float32),
        frequency_penalty=column("frequency_penalty", np.float32),
        history=flat(histories, np.int32),
        history_offsets=offsets(histories),
        prompt_lengths=np.array([len(row.prompt) for row in rows], np.int32),
        bias_ids=flat([[token for token, _ in bias] for bias in biases], np.int32),
        bias_values=flat([[value for _, value in bias] for bias in biases], np.float32),
        bias_offsets=offsets(biases),
        num_logprobs=num_logprobs,
        **masks(rows, vocab_size),
    )


def masks(rows: Sequence[Row], vocab_size: int) -> dict[str, npt.NDArray[np.int32]]:
    bound = [row for row in rows if row.allowed is not None]
    if not bound:
        return {}
    allowed = np.zeros((len(bound), -(-vocab_size // 32)), np.uint32)
    for mask, row in zip(allowed, bound, strict=True):
        for token in row.allowed or ():
            mask[token // 32] |= np.uint32(1 << token % 32)
    numbers = [bound.index(row) if row.allowed is not None else -1 for row in rows]
    return {"allowed": allowed.view(np.int32), "allowed_rows": np.array(numbers, np.int32)}


def raw_logits(result: StepResult) -> Floats:
    assert result.logits is not None
    return result.logits


# --- which token


@pytest.mark.parametrize("isa", ISAS)
def test_greedy_after_bias_and_penalties(isa: str) -> None:
    rng = np.random.default_rng(0)
    table = random_table(8, 12)
    table[4:] -= 8  # penalties treat negative logits otherwise, so let them win as well
    engine = lookup_model(table).native(isa=isa)
    rows = [
        Row(
            temperature=0,
            repetition_penalty=rng.choice([0.5, 1, 1.3, 3]),
            presence_penalty=rng.choice([-1, 0, 1]),
            frequency_penalty=rng.choice([-0.5, 0, 0.5]),
            prompt=rng.integers(0, 12, rng.integers(0, 6)).tolist(),
            answer=rng.integers(0, 12, rng.integers(0, 9)).tolist(),
            bias={int(t): rng.normal() for t in rng.choice(12, rng.integers(0, 4), replace=False)},
        )
        for _ in range(400)
    ]
    result = choose(engine, [i % 8 for i in range(400)], rows)
    changed = 0
    for logits, row, token in zip(raw_logits(result), rows, result.token_ids, strict=True):
        x = adjusted(logits, row)
        assert x[token] >= x.max() - 1e-5
        changed += token != logits.argmax()
    assert changed > 100, "the penalties decide often enough to be tested"


def test_logits_computed_elsewhere_give_the_choice_of_a_step() -> None:
    """The same tokens and log probabilities, to the last bit, and the logits as they were."""
    rng = np.random.default_rng(5)
    table = random_table(6, 40)
    rows = [
        Row(
            temperature=rng.choice([0, 0.7, 1.5]),
            top_k=rng.choice([0, 5]),
            top_p=rng.choice([0.5, 1]),
            min_p=rng.choice([0, 0.02]),
            seed=int(rng.integers(1000)),
            position=int(rng.integers(1000)),
            repetition_penalty=rng.choice([1, 1.3]),
            frequency_penalty=rng.choice([0, 0.5]),
            prompt=rng.integers(0, 40, 3).tolist(),
            answer=rng.integers(0, 40, 4).tolist(),
            bias={int(rng.integers(40)): 2.0},
            allowed=frozenset(rng.choice(40, 20, replace=False).tolist()) if i % 3 else None,
        )
        for i in range(90)
    ]
    result = choose(lookup_model(table).native(), [i % 6 for i in range(90)], rows, num_logprobs=3)
    logits = raw_logits(result)
    given = logits.copy()
    made = sample(logits, sampling_input(rows, 3, 40))
    np.testing.assert_array_equal(logits, given)
    for name in ("token_ids", "logprobs", "top_ids", "top_logprobs"):
        np.testing.assert_array_equal(getattr(made, name), getattr(result, name))
    logits[1, 7] = np.nan
    assert sample(logits, sampling_input(rows, 3, 40)).token_ids[1] == -1


@pytest.mark.parametrize(
    ("row", "words"),
    [(Row(bias={40: 1.0}), "bias_ids"), (Row(prompt=[-1]), "history")],
)
def test_ids_beyond_the_vocabulary_are_refused(row: Row, words: str) -> None:
    with pytest.raises(InvalidParameterError, match=words):
        sample(random_table(1, 40), sampling_input([row]))


def test_ties_go_to_the_lowest_id() -> None:
    table = np.array([[0, 3, 1, 3, 3, 2], [5, 5, 5, 5, 5, 5]], np.float32)
    for isa in ISAS:
        engine = lookup_model(table).native(isa=isa)
        for row in (Row(temperature=0), Row(top_k=1), Row(top_p=1e-6)):
            assert choose(engine, [0, 1], [row, row]).token_ids.tolist() == [1, 0]
        # A tie on the edge of top_k: ids 1 and 3 stay, 4 does not.
        rows = [Row(top_k=2, seed=seed) for seed in range(50)]
        assert set(choose(engine, [0] * 50, rows).token_ids.tolist()) == {1, 3}


@settings(max_examples=60)
@given(
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 5.0, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 36, 37, 38, 1000]),
    top_p=st.floats(1e-6, 1.0),
    min_p=st.floats(0.0, 1.0),
    repetition_penalty=st.floats(0.5, 2.0),
    presence_penalty=st.floats(-2.0, 2.0),
    frequency_penalty=st.floats(-2.0, 2.0),
    prompt=st.lists(st.integers(0, 36), max_size=5),
    answer=st.lists(st.integers(0, 36), max_size=5),
    bias=st.dictionaries(st.integers(0, 36), st.floats(-100, 100), max_size=3),
    allowed=st.none() | st.frozensets(st.integers(0, 36), min_size=1),
)
def test_drawn_tokens_are_allowed(**values: Any) -> None:
    rows = [Row(**values, seed=seed) for seed in range(40)]
    for isa in ISAS:
        result = choose(LOOKUP[isa], [seed % 3 for seed in range(40)], rows)
        for logits, row, token in zip(raw_logits(result), rows, result.token_ids, strict=True):
            if row.temperature == 0:
                assert adjusted(logits, row)[token] >= adjusted(logits, row).max() - 1e-4
            else:
                # Near the edge of a set, float32 may decide either way.
                assert probabilities(logits, row, slack=1e-4)[token] > 0


LOOKUP = {isa: lookup_model(random_table(3, 37)).native(isa=isa) for isa in ISAS}

DISTRIBUTIONS = {
    "plain": Row(),
    "cold": Row(temperature=0.4),
    "hot": Row(temperature=3.0),
    "top_k": Row(top_k=4),
    "top_p": Row(top_p=0.7),
    "min_p": Row(min_p=0.15),
    "bias": Row(bias={0: 3.0, 1: -5.0, 36: float("-inf")}),
    "allowed": Row(allowed=frozenset({2, 3, 5, 31, 32, 36}), bias={4: 50.0}),
    "penalties": Row(
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        prompt=[0, 1, 2, 3, 3, 4],
        answer=[4, 5, 5, 5, 6, 7, 8],
    ),
    "everything": Row(
        temperature=1.7,
        top_k=12,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.2,
        presence_penalty=0.2,
        prompt=[*range(20)],
        answer=[*range(15, 30)],
        bias={3: 2.0, 30: 2.0},
    ),
}


@pytest.mark.parametrize("varied", ["seed", "position"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_follow_their_probabilities(name: str, varied: str) -> None:
    row, n = DISTRIBUTIONS[name], 4096
    rows = [
        replace(row, seed=i) if varied == "seed" else replace(row, position=i) for i in range(n)
    ]
    result = choose(LOOKUP[ISAS[-1]], [0] * n, rows)
    expected = n * probabilities(raw_logits(result)[0], row)
    counts = np.bincount(result.token_ids, minlength=37)
    assert (counts[expected == 0] == 0).all()
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    counts = np.append(counts[~rare], counts[rare].sum())
    kept = expected > 0
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    degrees = max(int(kept.sum()) - 1, 1)
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)  # odds of about one in a million


def philox(seed: int, position: int) -> float:
    """Philox4x32-10 (Salmon et al., 2011), its first two words as a number in [0, 1)."""
    c = [position % 2**32, position >> 32, 0, 0]
    key = [seed % 2**32, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ key[0], b % 2**32, a >> 32 ^ c[3] ^ key[1], a % 2**32]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return float((c[1] << 32 | c[0]) >> 11) / 2**53


def test_the_random_numbers_are_philox() -> None:
    # Seeds are a promise to users: the same ones give the same tokens in later versions too.
    assert philox(0, 0) == (0xE169C58D6627E8D5 >> 11) / 2**53  # published with the algorithm
    vocab_size = 1000
    engine = lookup_model(np.zeros((1, vocab_size), np.float32)).native()
    keys = [(s, p) for s in (0, 1, 2**32, 2**63, 2**64 - 1) for p in (0, 1, 7, 2**32, 2**62)]
    rows = [Row(seed=seed, position=position) for seed, position in keys]
    drawn = choose(engine, [0] * len(rows), rows).token_ids.tolist()
    assert drawn == [int(philox(*key) * vocab_size) for key in keys]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_draw_knows_nothing_of_its_batch(num_threads: int) -> None:
    table = random_table(8, 301)
    rows = [
        replace(row, seed=i, position=10 * i)
        for i, row in enumerate([*DISTRIBUTIONS.values(), Row(temperature=0)] * 3)
    ]
    tokens = [i % 8 for i in range(len(rows))]
    engine = lookup_model(table).native()
    alone = [int(choose(engine, [t], [r]).token_ids[0]) for t, r in zip(tokens, rows, strict=True)]
    for isa in ISAS:
        engine = lookup_model(table).native(isa=isa, num_threads=num_threads)
        assert choose(engine, tokens, rows).token_ids.tolist() == alone
        # Nor of what else is asked for.
        assert choose(engine, tokens, rows, num_logprobs=3).token_ids.tolist() == alone
        order = np.random.default_rng(0).permutation(len(rows))
        shuffled = choose(engine, [tokens[i] for i in order], [rows[i] for i in order])
        assert shuffled.token_ids.tolist() == [alone[i] for i in order]


def test_nothing_allowed_chooses_nothing() -> None:
    rows = [Row(allowed=frozenset()), Row(temperature=0, allowed=frozenset()), Row(temperature=0)]
    result = choose(LOOKUP[ISAS[-1]], [0, 1, 2], rows)
    assert result.token_ids.tolist()[:2] == [-1, -1]
    assert result.token_ids[2] >= 0


@pytest.mark.parametrize(
    ("masks", "rows", "part"),
    [((1, 1), [0], "allowed must have shape"), ((1, 2), [0, 0], "allowed_rows"),
     ((1, 2), [1], "below the 1 masks")],
)  # fmt: skip
def test_masks_that_do_not_fit(masks: tuple[int, int], rows: list[int], part: str) -> None:
    sampling = replace(
        sampling_input([Row()]),
        allowed=np.zeros(masks, np.int32),
        allowed_rows=np.array(rows, np.int32),
    )
    engine = LOOKUP[ISAS[0]]
    stream = Stream(np.array([0], np.int32), np.array([0], np.int32))
    with pytest.raises(InvalidParameterError, match=part):
        engine.step(KVCache(engine, 1), step_input([(stream, 1)], sampling))


# --- log probabilities


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_logprobs", [0, 1, 5, 37])
def test_logprobs_are_those_of_the_raw_logits(num_logprobs: int, isa: str) -> None:
    rows = [*DISTRIBUTIONS.values(), Row(temperature=0, bias={7: 100.0})]
    tokens = [i % 3 for i in range(len(rows))]
    result = choose(LOOKUP[isa], tokens, rows, num_logprobs)
    logits = raw_logits(result).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    chosen = np.take_along_axis(expected, result.token_ids[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(result.logprobs, chosen, atol=1e-5)
    likeliest = np.argsort(-logits, axis=1, kind="stable")[:, :num_logprobs]
    np.testing.assert_array_equal(result.top_ids, likeliest)
    top = np.take_along_axis(expected, likeliest, axis=1)
    np.testing.assert_allclose(result.top_logprobs, top, atol=1e-5)
    assert (np.diff(result.top_logprobs) <= 0).all()


def test_logits_that_are_asked_for_are_the_raw_ones() -> None:
    engine = LOOKUP[ISAS[-1]]
    plain = raw_logits(choose(engine, [0], [Row()]))
    biased = raw_logits(choose(engine, [0], [Row(temperature=0, bias={0: 50.0})]))
    np.testing.assert_array_equal(plain, biased)


# --- logits that are no good


def test_damaged_logits_give_no_token() -> None:
    table = random_table(4, 9).astype(np.float64)
    table[1, 3] = 6e38  # float32 ends at 3.4e38
    table[2, 3] = -6e38
    good, damaged, ruled_out = 0, 1, 2
    for isa in ISAS:
        engine = lookup_model(table).native(isa=isa)
        for temperature in (0.0, 1.0):
            row = Row(temperature=temperature)
            result = choose(engine, [good, damaged, ruled_out, good], [row] * 4, num_logprobs=1)
            assert np.isposinf(raw_logits(result)[damaged, 3])
            assert np.isneginf(raw_logits(result)[ruled_out, 3])
            assert result.token_ids[1] == -1
            assert (result.token_ids[[0, 2, 3]] >= 0).all()
        seeds = [Row(temperature=100.0, seed=seed) for seed in range(200)]
        assert 3 not in choose(engine, [ruled_out] * 200, seeds).token_ids
    not_numbers = random_table(4, 9)
    not_numbers[0, 3] = np.nan
    for row in (Row(), Row(temperature=0), Row(top_k=2, top_p=0.5)):
        engine = lookup_model(not_numbers).native()
        assert choose(engine, [0], [row]).token_ids.tolist() == [-1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_to_choose_from(temperature: float) -> None:
    row = Row(temperature=temperature, bias=dict.fromkeys(range(37), float("-inf")))
    assert choose(LOOKUP[ISAS[-1]], [0], [row]).token_ids.tolist() == [-1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "row", [Row(bias={3: float("inf")}), Row(bias={3: float("nan")}), Row(min_p=1.5)]
)
def test_values_that_leave_nothing_sensible_give_no_token(row: Row, temperature: float) -> None:
    """SamplingParams lets none of these through; the core stays within its bounds all the same."""
    row = replace(row, temperature=temperature)
    token = choose(LOOKUP[ISAS[-1]], [0], [row]).token_ids.tolist()[0]
    assert token == -1 or (temperature == 0 and row.min_p > 1)


# --- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": np.ones(3, np.float32)}, "temperature must have shape"),
        ({"seed": np.ones(1, np.uint64)}, "seed must have shape"),
        ({"history_offsets": np.array([0, 2], np.int32)}, "history_offsets must have shape"),
        ({"history_offsets": np.array([0, 3, 2], np.int32)}, "history_offsets must ascend"),
        ({"history_offsets": np.array([0, 0, 9], np.int32)}, "history_offsets must ascend"),
        ({"history_offsets": np.array([1, 1, 2], np.int32)}, "history_offsets must ascend"),
        ({"prompt_lengths": np.array([0, 3], np.int32)}, "prompt_lengths"),
        ({"prompt_lengths": np.array([-1, 0], np.int32)}, "prompt_lengths"),
        ({"bias_values": np.ones(3, np.float32)}, "bias_values must have shape"),
        ({"bias_offsets": np.array([0, 1, 3], np.int32)}, "bias_offsets must ascend"),
        ({"history": np.array([0, 37], np.int32)}, r"history\[1\] is 37"),
        ({"bias_ids": np.array([0, -1], np.int32)}, r"bias_ids\[1\] is -1"),
        ({"num_logprobs": 38}, "num_logprobs is 38"),
    ],
)
def test_inputs_that_do_not_fit(change: Mapping[str, Any], message: str) -> None:
    engine = LOOKUP[ISAS[-1]]
    rows = [Row(), Row(prompt=[1], answer=[2], bias={3: 1.0, 4: 1.0})]
    streams = [Stream(np.array([0], np.int32), np.array([i], np.int32)) for i in range(2)]
    step = step_input([(stream, 1) for stream in streams], sampling_input(rows))
    assert step.sampling is not None
    with pytest.raises(InvalidParameterError, match=message):
        engine.step(KVCache(engine, 2), replace(step, sampling=replace(step.sampling, **change)))
