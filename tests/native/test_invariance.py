"""A sequence's logits are the same bits whatever runs beside it, on however many threads, and in
however many steps its tokens came. Batching, caching and speculation lose nothing because of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from glimmer.architecture import Blanks, Experts, Rope
from glimmer.errors import InvalidParameterError
from glimmer.native import BLOCK_SIZE, KVCache, instruction_sets
from tests.support.tiny import (
    BLOCK,
    DTYPES,
    PLAIN,
    Floats,
    Ints,
    KVDType,
    TinyModel,
    advance,
    make_cache,
    make_streams,
    random_architecture,
    random_text,
    run,
    seeded,
)

ISAS = instruction_sets()
# One token; both sides of a block of the cache; one and two cuts of attention, at 512 keys.
LENGTHS = (1, 5, 31, 32, 33, 100, 530, 1030)
CHUNKS = (1, 3, 32, 50, 511)

MODELS = {
    # All dtypes, int8 and int16 inputs, several KV heads, a group that fills no tile of 16 rows.
    "mixed": TinyModel.random(
        random_architecture(
            seeded(0),
            input_multiple=BLOCK,
            **{**PLAIN, "num_layers": 2, "num_heads": 6, "num_kv_heads": 2, "head_dim": 16},
        ),
        DTYPES,
    ),
    # One KV head and few units of work: long contexts are then shared among threads by splits.
    "one kv head": TinyModel.random(
        random_architecture(
            seeded(1),
            **{**PLAIN, "num_layers": 2, "num_heads": 5, "num_kv_heads": 1, "head_dim": 10},
        )
    ),
    # Contexts that all of a text sees, and a trained prefix of two cuts before it.
    "context": TinyModel.random(
        random_architecture(
            seeded(2),
            **{"num_layers": 2, "num_heads": 3, "num_kv_heads": 3, "head_dim": 24},
            **{"norm": "layer", "norm_place": "pre", "residual": "normed", "residual_scale": 7.5},
            **{"mask": "prefix", "blanks": Blanks(start_id=0, blank_ids=(1, 2))},
            **{"mlp": "gelu_tanh", "qk_norm": False, "experts": None, "prefix_length": 550},
            rope=Rope(dims=12, base=1e4, pairing="half", positions="2d"),
        )
    ),
    # Experts of all dtypes, chosen by each token for itself, in groups, after one dense layer.
    "experts": TinyModel.random(
        random_architecture(
            seeded(3),
            input_multiple=BLOCK,
            **{
                **PLAIN,
                **{"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 24},
                **{"norm_place": "sandwich", "qk_norm": True},
                "experts": Experts(
                    num_experts=12,
                    num_experts_per_token=3,
                    num_shared_experts=2,
                    intermediate_size=64,
                    num_dense_layers=1,
                    num_groups=4,
                    num_groups_per_token=2,
                    routed_scale=2.5,
                ),
            },
        ),
        DTYPES,
        experts_by_token=True,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> TinyModel:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def sequences(model: TinyModel) -> list[Ints]:
    rng = np.random.default_rng(0)
    return [random_text(model.architecture, n, rng) for n in LENGTHS]


@pytest.fixture(scope="module")
def alone(model: TinyModel, sequences: Sequence[Ints]) -> list[Floats]:
    """Each sequence by itself, in one step of one thread of the best instruction set."""
    engine = model.native()
    return [run(engine, [token_ids])[0] for token_ids in sequences]


def check_equal(actual: Sequence[Floats], expected: Sequence[Floats]) -> None:
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets(
    model: TinyModel, sequences: Sequence[Ints], alone: Sequence[Floats], isa: str
) -> None:
    check_equal(run(model.native(isa=isa), sequences), alone)


@pytest.mark.parametrize("kv_dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_instruction_sets_in_every_form(
    model: TinyModel, sequences: Sequence[Ints], activations: str, kv_dtype: KVDType
) -> None:
    results = [
        run(model.native(isa=isa, activations=activations), sequences[:6], kv_dtype=kv_dtype)
        for isa in ISAS
    ]
    for result in results[1:]:
        check_equal(result, results[0])


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads(
    model: TinyModel, sequences: Sequence[Ints], alone: Sequence[Floats], num_threads: int
) -> None:
    engine = model.native(num_threads=num_threads)
    check_equal(run(engine, sequences), alone)
    for token_ids, logits in zip(sequences, alone, strict=True):
        check_equal(run(engine, [token_ids]), [logits])


def test_block_tables(model: TinyModel, sequences: Sequence[Ints], alone: Sequence[Floats]) -> None:
    engine = model.native()
    for seed in range(1, 4):
        check_equal(run(engine, sequences, seed=seed), alone)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks(
    model: TinyModel, sequences: Sequence[Ints], alone: Sequence[Floats], chunk: int
) -> None:
    engine = model.native(num_threads=2)
    check_equal(run(engine, sequences, chunk=chunk), alone)
    check_equal(run(engine, sequences[-2:-1], chunk=chunk), alone[-2:-1])


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_any_schedule(
    model: TinyModel, sequences: Sequence[Ints], alone: Sequence[Floats], num_threads: int
) -> None:
    # Prompts and answers side by side, each step another company in another order.
    engine, rng = model.native(num_threads=num_threads), random.Random(num_threads)
    streams = make_streams(model.architecture, sequences, seed=num_threads)
    cache = make_cache(engine, streams)
    while unfinished := [s for s in streams if s.num_left]:
        company = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        parts = [s.next_part(rng.choice([1, 1, 2, 4, 5, 16, 65, 200])) for s in company]
        firsts = [s.num_computed for s in company]
        for logits, (stream, n), first in zip(
            advance(engine, cache, parts), parts, firsts, strict=True
        ):
            expected = alone[streams.index(stream)][first : first + n]
            np.testing.assert_array_equal(logits, expected)


def test_blocks_hold_nothing_of_their_last_owner(
    model: TinyModel, sequences: Sequence[Ints], alone: Sequence[Floats]
) -> None:
    engine = model.native()
    cache = KVCache(engine, -(-max(LENGTHS) // BLOCK_SIZE))
    for token_ids, logits in reversed([*zip(sequences, alone, strict=True)]):
        [stream] = make_streams(model.architecture, [token_ids])
        check_equal(advance(engine, cache, [(stream, len(token_ids))]), [logits])


@pytest.mark.parametrize("kv_dtype", ["float16", "float32", "int8"])
def test_blocks_may_be_copied(
    model: TinyModel, sequences: Sequence[Ints], kv_dtype: KVDType
) -> None:
    engine, text = model.native(), sequences[5]
    (expected,) = run(engine, [text], kv_dtype=kv_dtype)
    first, second = make_streams(model.architecture, [text, text])
    cache = make_cache(engine, [first, second], kv_dtype)
    advance(engine, cache, [first.next_part(len(text) - 1)])
    for source, target in zip(first.block_table, second.block_table, strict=True):
        cache.copy_block(int(source), int(target))
    second.num_computed = first.num_computed
    (logits,) = advance(engine, cache, [(second, second.num_left)])
    np.testing.assert_array_equal(logits, expected[second.num_computed - len(logits) :])
    with pytest.raises(InvalidParameterError, match="Block 8 cannot be copied"):
        cache.copy_block(0, 8)


def test_blocks_may_be_shared(
    model: TinyModel, sequences: Sequence[Ints], alone: Sequence[Floats]
) -> None:
    """A sequence that starts like another may read its first blocks instead of computing them."""
    engine = model.native()
    first, second = make_streams(model.architecture, [sequences[-1], sequences[-1]])
    cache = make_cache(engine, [first, second])
    advance(engine, cache, [(first, first.num_left)])
    shared = 20
    second.block_table[:shared] = first.block_table[:shared]
    second.num_computed = shared * BLOCK_SIZE
    [logits] = advance(engine, cache, [(second, second.num_left)])
    check_equal([logits], [alone[-1][shared * BLOCK_SIZE :]])


def test_callers_take_turns(
    model: TinyModel, sequences: Sequence[Ints], alone: Sequence[Floats]
) -> None:
    """Two Python threads on each of two engines, every one with a cache of its own."""
    engines = [model.native(num_threads=2) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda engine: run(engine, sequences[:6], chunk=7), engines * 2):
            check_equal(result, alone[:6])
