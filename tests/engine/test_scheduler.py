"""Who runs in the next step, with which blocks."""

from __future__ import annotations

import pytest

from glimmer.engine import Request, SamplingParams
from glimmer.engine.block_pool import BlockPool
from glimmer.engine.scheduler import PRIORITY_PLACES, Scheduler, SchedulerOutput, company
from glimmer.engine.sequence import Sequence
from glimmer.engine.speculation import Drafter
from glimmer.engine.step_costs import StepCosts
from glimmer.native import BLOCK_SIZE


def make_sequence(
    request_id: int,
    prompt: int,
    answer: int,
    *,
    first: int | None = None,
    priority: int = 0,
    fork_of: int | None = None,
) -> Sequence:
    """``first``: the token that its prompt starts with, its own by default."""
    start = 1000 * request_id if first is None else first
    request = Request(
        request_id,
        tuple(range(start, start + prompt)),
        SamplingParams(),
        frozenset(),
        seed=request_id,
        priority=priority,
        fork_of=fork_of,
    )
    return Sequence(request, prompt + answer)


def make_scheduler(blocks: int = 64, seqs: int = 8, budget: int = 256) -> Scheduler:
    return Scheduler(BlockPool(blocks), seqs, budget)


def numbers(output: SchedulerOutput) -> list[tuple[int, int]]:
    return [(i.sequence.request.request_id, i.num_tokens) for i in output.scheduled]


def step(scheduler: Scheduler) -> list[tuple[int, int]]:
    """A step of a model that always says 7; (request, tokens computed)."""
    output = scheduler.schedule()
    for item in output.scheduled:
        ended = item.sequence.append(7) if item.num_logits else None
        scheduler.computed(item.sequence, item.num_tokens)
        if ended:
            scheduler.finish(item.sequence)
    scheduler.check_integrity()
    return numbers(output)


def test_aborts_free_blocks_wherever_a_sequence_is() -> None:
    scheduler = make_scheduler(blocks=4, seqs=1, budget=16)
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
    scheduler = make_scheduler(seqs=2, budget=16)
    long, short = make_sequence(0, 500, 4), make_sequence(1, 3, 8)
    scheduler.add(long)
    scheduler.add(short)
    while len(short.token_ids) < 11:
        step(scheduler)
    assert long.num_uncomputed > 300


def test_a_prompt_of_one_token_does_not_overtake_an_older_prompt() -> None:
    scheduler = make_scheduler(budget=8, seqs=3)
    for sequence in (make_sequence(0, 6, 1), make_sequence(1, 3, 1), make_sequence(2, 1, 1)):
        scheduler.add(sequence)
    assert step(scheduler) == [(0, 6), (1, 2)]


def test_first_come_first_served_without_overtaking() -> None:
    scheduler = make_scheduler(blocks=4)
    scheduler.add(make_sequence(0, 40, 20))
    step(scheduler)
    scheduler.add(make_sequence(1, 90, 20))
    scheduler.add(make_sequence(2, 3, 2))  # would fit
    started = [[i for i, _ in step(scheduler)] for _ in range(60)]
    assert started[0] == [0]
    first = [next(n for n, ids in enumerate(started) if i in ids) for i in (1, 2)]
    assert first == sorted(first)
    assert first[0] >= 19  # when the one before has ended


def test_priority_is_worth_places_in_the_queue() -> None:
    scheduler = make_scheduler(seqs=1)
    scheduler.add(make_sequence(0, 3, 3))
    step(scheduler)
    scheduler.add(make_sequence(1, 3, 1))
    scheduler.add(make_sequence(2, 3, 1, priority=1))
    for request_id in range(3, 3 + PRIORITY_PLACES):
        scheduler.add(make_sequence(request_id, 3, 1))
    order: list[int] = []
    while scheduler.num_waiting or scheduler.num_running:
        order += [i for i, _ in step(scheduler) if i not in order]
    # Those that came up to 64 places later went before it, and not one more.
    assert order == [0, 1, *range(3, 2 + PRIORITY_PLACES), 2, 2 + PRIORITY_PLACES]


def test_the_urgent_takes_the_place_of_the_patient_which_goes_on_later() -> None:
    scheduler = make_scheduler(seqs=1)
    patient, urgent = make_sequence(0, 70, 9, priority=2), make_sequence(1, 5, 2)
    scheduler.add(patient)
    step(scheduler)
    step(scheduler)
    said = list(patient.token_ids)
    scheduler.add(urgent)
    assert step(scheduler) == [(1, 5)]
    assert scheduler.stats.num_preemptions == 1
    assert step(scheduler) == [(1, 1)]
    # What it had in full blocks is still there.
    assert step(scheduler) == [(0, len(said) - 2 * BLOCK_SIZE)]
    assert patient.token_ids[: len(said)] == said


def test_when_blocks_run_out_the_youngest_gives_way() -> None:
    scheduler = make_scheduler(blocks=4)
    old, young = make_sequence(0, 30, 60), make_sequence(1, 30, 60)
    scheduler.add(old)
    scheduler.add(young)
    served = [step(scheduler) for _ in range(62)]
    assert scheduler.stats.num_preemptions == 1
    assert len(old.token_ids) == 90
    assert all(0 in dict(s) for s in served[:60])
    while scheduler.num_running:
        step(scheduler)
    assert len(young.token_ids) == 90


def test_equal_beginnings_are_computed_once() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 100, 1, first=5))
    assert step(scheduler) == [(0, 100)]
    again = make_sequence(1, 100, 1, first=5)
    scheduler.add(again)
    assert step(scheduler) == [(1, 100 - 3 * BLOCK_SIZE)]
    assert again.num_cached == 3 * BLOCK_SIZE
    # One token at least is computed, and a text that only ends like another shares nothing.
    whole, other = make_sequence(2, 96, 1, first=5), make_sequence(3, 100, 1, first=6)
    scheduler.add(whole)
    scheduler.add(other)
    assert step(scheduler) == [(2, BLOCK_SIZE), (3, 100)]


def test_what_was_not_used_for_longest_is_given_up_first() -> None:
    scheduler = make_scheduler(blocks=4)

    def cached(request_id: int, first: int) -> int:
        sequence = make_sequence(request_id, BLOCK_SIZE + 1, 1, first=first)
        scheduler.add(sequence)
        step(scheduler)
        return sequence.num_cached

    # Each leaves one full block behind; the fourth takes what is empty, and then another's.
    assert [cached(*x) for x in ((0, 100), (1, 500), (2, 100), (3, 900))] == [0, 0, BLOCK_SIZE, 0]
    assert cached(4, 700) == 0
    assert cached(5, 100) == BLOCK_SIZE
    assert cached(6, 500) == 0


def test_a_fork_shares_the_prompt_and_copies_the_block_it_changes() -> None:
    scheduler = make_scheduler()
    leader = make_sequence(0, 40, 5)
    fork = make_sequence(1, 40, 5, first=0, fork_of=0)
    scheduler.add(leader)
    scheduler.add(fork)
    assert step(scheduler) == [(0, 40)]  # the fork waits for it
    output = scheduler.schedule()
    assert numbers(output) == [(0, 1), (1, 1)]
    # The first to write takes a copy of the block that both hold.
    assert output.copies == ((1, leader.block_table[1]),)
    assert leader.block_table == [0, output.copies[0][1]]
    assert fork.block_table == [0, 1]
    assert fork.num_cached == 39


def test_a_fork_whose_leader_is_gone_goes_its_own_way() -> None:
    scheduler = make_scheduler()
    leader, fork = make_sequence(0, 40, 5), make_sequence(1, 40, 5, first=0, fork_of=0)
    scheduler.add(leader)
    scheduler.add(fork)
    scheduler.schedule()
    scheduler.finish(leader)
    assert step(scheduler) == [(1, 40)]


REPEAT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def drafting(
    request_ids: range, *, answer: int = 40, budget: int = 256, blocks: int = 64, row: float = 0.02
) -> tuple[Scheduler, StepCosts]:
    """Sequences whose ends stood before, after their first token; a row costs so many steps."""
    costs = StepCosts()
    scheduler = Scheduler(BlockPool(blocks), 16, budget, step_costs=costs)
    for request_id in request_ids:
        sequence = make_sequence(request_id, 24, answer)
        sequence.token_ids = REPEAT * 2
        sequence.drafter = Drafter()
        scheduler.add(sequence)
    while any(s.num_computed < 24 for s in scheduler.sequences):
        for item in scheduler.schedule().scheduled:
            scheduler.computed(item.sequence, item.num_tokens)
    for sequence in scheduler.sequences:
        sequence.append(1)
    who, count = company(scheduler.sequences), len(request_ids)
    costs.learn(who, count, count, 1.0)
    for rows in range(count + 1, 40):
        costs.learn(who, count, rows, 1.0 + row * (rows - count))
    return scheduler, costs


def drafts_of(scheduler: Scheduler) -> list[int]:
    return [len(i.sequence.drafts) for i in scheduler.schedule().scheduled]


@pytest.mark.parametrize("num_sequences", [1, 2, 3])
def test_a_repeat_is_drafted_as_far_as_it_pays(num_sequences: int) -> None:
    scheduler, _ = drafting(range(num_sequences))
    output = scheduler.schedule()
    for item in output.scheduled:
        assert item.sequence.drafts == (REPEAT * 2)[1:][: len(item.sequence.drafts)]
        assert item.num_tokens == item.num_logits == 1 + len(item.sequence.drafts)
        assert len(item.sequence.drafts) > 5
    scheduler.check_integrity()


def test_dear_rows_are_not_drafted() -> None:
    assert drafts_of(drafting(range(1), row=1.5)[0]) == [0]


def test_nothing_is_drafted_before_a_plain_step_was_timed() -> None:
    scheduler, costs = drafting(range(2))
    costs.learn("others", 1, 1, 1.0)
    assert drafts_of(scheduler) == [0, 0]


def test_nothing_is_drafted_at_the_cost_of_one_that_gains_nothing() -> None:
    scheduler, _ = drafting(range(2))
    other = next(s for s in scheduler.sequences if s.request.request_id == 1)
    assert other.drafter is not None
    other.drafter.credit = 0
    assert drafts_of(scheduler) == [0, 0]
    other.drafter = None  # it asked for none, so it has no account to pay from
    assert drafts_of(scheduler) == [0, 0]


def test_large_batches_draft_nothing() -> None:
    assert sum(drafts_of(drafting(range(8))[0])) > 0
    assert sum(drafts_of(drafting(range(9))[0])) == 0


def test_beside_a_prompt_drafts_take_a_small_part_of_the_step() -> None:
    scheduler, _ = drafting(range(1))
    scheduler.add(make_sequence(5, 1000, 5))
    assert numbers(scheduler.schedule()) == [(0, 16), (5, 240)]
    scheduler, _ = drafting(range(1), budget=32)
    scheduler.add(make_sequence(5, 1000, 5))
    assert numbers(scheduler.schedule()) == [(0, 3), (5, 29)]


def test_nothing_is_drafted_beyond_the_end() -> None:
    scheduler, _ = drafting(range(1), answer=3)
    # Two more tokens may come, the second of which needs no draft behind it.
    assert numbers(scheduler.schedule()) == [(0, 2)]


def test_drafts_take_no_block_that_another_may_need() -> None:
    # 25 tokens leave 7 places in the block; there is one more block for each of the two.
    scheduler, _ = drafting(range(2), blocks=5)
    assert drafts_of(scheduler) == [7, 7]
    scheduler.check_integrity()
    assert scheduler.stats.num_preemptions == 0
    scheduler, _ = drafting(range(2), blocks=6)
    assert min(drafts_of(scheduler)) > 7
    scheduler.check_integrity()
