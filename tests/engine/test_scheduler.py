"""The engine over a model that only counts: no block is lost, nobody waits for ever."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from glimmer.engine import Request, SamplingParams
from glimmer.engine.block_pool import BlockPool
from glimmer.engine.scheduler import Scheduler, blocks_needed
from glimmer.engine.sequence import Sequence
from glimmer.native import BLOCK_SIZE


def make_sequence(request_id: int, prompt: int, answer: int) -> Sequence:
    request = Request(
        request_id, tuple(range(prompt)), SamplingParams(), frozenset(), seed=request_id
    )
    return Sequence(request, prompt + answer)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(8, 16),
    st.integers(4, 64),
    st.data(),
)
def test_every_request_ends(
    lengths: list[tuple[int, int]], max_num_seqs: int, blocks: int, budget: int, data: st.DataObject
) -> None:
    scheduler = Scheduler(BlockPool(blocks), max_num_seqs, budget)
    waiting = [make_sequence(i, *n) for i, n in enumerate(lengths)]
    finished: list[Sequence] = []
    started: list[int] = []
    for _ in range(sum(prompt + answer for prompt, answer in lengths) + len(lengths)):
        while waiting and data.draw(st.booleans()):
            scheduler.add(waiting.pop(0))
        output = scheduler.schedule()
        assert sum(item.num_tokens for item in output.scheduled) <= budget
        for item in output.scheduled:
            sequence = item.sequence
            if sequence.num_computed == 0:
                started.append(sequence.request.request_id)
            sequence.num_computed += item.num_tokens
            assert sequence.num_computed <= len(sequence.block_table) * BLOCK_SIZE
            if sequence.num_uncomputed == 0 and sequence.append(0):
                scheduler.finish(sequence)
                finished.append(sequence)
        scheduler.check_integrity()
        if waiting and not output.scheduled:
            scheduler.add(waiting.pop(0))
    assert not waiting
    assert len(finished) == len(lengths)
    assert started == sorted(started)  # first come, first served


def test_aborts_free_blocks_wherever_a_sequence_is() -> None:
    scheduler = Scheduler(BlockPool(4), max_num_seqs=1, max_batch_tokens=16)
    running, queued = make_sequence(0, 40, 8), make_sequence(1, 40, 8)
    scheduler.add(running)
    scheduler.add(queued)
    scheduler.schedule()
    scheduler.finish(queued)
    scheduler.finish(running)
    scheduler.check_integrity()
    assert scheduler.pool.num_free == 4
    assert not scheduler.schedule().scheduled


def test_a_long_prompt_does_not_stall_a_decode() -> None:
    scheduler = Scheduler(BlockPool(64), max_num_seqs=2, max_batch_tokens=16)
    long, short = make_sequence(0, 500, 4), make_sequence(1, 3, 8)
    scheduler.add(long)
    scheduler.add(short)
    for _ in range(40):
        output = scheduler.schedule()
        for item in output.scheduled:
            item.sequence.num_computed += item.num_tokens
            if item.sequence.num_uncomputed == 0:
                item.sequence.append(0)
        if len(short.token_ids) == 11:
            break
    assert len(short.token_ids) == 11
    assert long.num_uncomputed > 0
    assert blocks_needed(long) == -(-504 // BLOCK_SIZE)


def test_a_prompt_of_one_token_does_not_overtake_an_older_prompt() -> None:
    scheduler = Scheduler(BlockPool(8), max_num_seqs=3, max_batch_tokens=4)
    sequences = [make_sequence(0, 3, 1), make_sequence(1, 2, 1), make_sequence(2, 1, 1)]
    for sequence in sequences:
        scheduler.add(sequence)
    output = scheduler.schedule()
    assert [(i.sequence.request.request_id, i.num_tokens) for i in output.scheduled] == [
        (0, 3),
        (1, 1),
    ]
