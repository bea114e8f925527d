"""Which tokens run in the next step. Knows no model.

Sequences have a rank: their number of arrival, plus 64 for each step of priority. So one that is
asked for later and matters more comes sooner, but nobody waits for ever. What there is goes to the
lower rank: waiting sequences start in that order, without overtaking, and when blocks run out the
highest rank gives up its own and is computed again later, to the same bits.

A step takes one token of every sequence that decodes, and drafts of what may follow where that
makes answers come sooner; the rest of its budget is filled with pieces of prompts.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from glimmer.engine import prefix_cache
from glimmer.engine.block_pool import BlockPool
from glimmer.engine.sequence import Sequence
from glimmer.engine.speculation import (
    FORCED_CHANCE,
    MOST_DRAFTS,
    Drafter,
    Guess,
    choose_rows,
)
from glimmer.engine.step_costs import StepCosts
from glimmer.native import BLOCK_SIZE

PRIORITY_PLACES = 64
"""Places in the queue that one step of priority is worth."""
# In more company a row costs nearly what a token costs, and drafts take Python's time.
_MOST_DRAFTING = 8
_PROMPT_SHARE = 16
"""Beside prompts, drafts take at most this part of a step's budget."""


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    sequence: Sequence
    num_tokens: int
    """Tokens of it that this step computes, drafts included."""

    @property
    def num_logits(self) -> int:
        """Rows, the last of these tokens, whose next token is wanted."""
        drafts = len(self.sequence.drafts)
        return drafts + 1 if self.num_tokens == self.sequence.num_uncomputed + drafts else 0


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    scheduled: tuple[ScheduledSequence, ...]
    copies: tuple[tuple[int, int], ...]
    """(from, to): blocks to be copied, in this order, before the step."""


@dataclass(slots=True)
class SchedulerStats:
    """Counted since the start."""

    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    """Of sequences that started."""
    num_cached_tokens: int = 0
    """Of these, tokens that were in the prefix cache."""


class Scheduler:
    """Shares ``pool`` among at most ``max_num_seqs`` sequences at a time."""

    def __init__(
        self,
        pool: BlockPool,
        max_num_seqs: int,
        max_batch_tokens: int,
        *,
        prefix_caching: bool = True,
        step_costs: StepCosts | None = None,
    ) -> None:
        """``step_costs``: what the owner of the steps learns; drafts are chosen by it."""
        assert max_batch_tokens >= max_num_seqs, "every running sequence gets a token per step"
        self.pool = pool
        self.stats = SchedulerStats()
        self._max_num_seqs = max_num_seqs
        self._max_batch_tokens = max_batch_tokens
        self._prefix_caching = prefix_caching
        self._step_costs = step_costs if step_costs is not None else StepCosts()
        self._arrivals = 0
        # Both by rank, the lowest first.
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def sequences(self) -> Iterator[Sequence]:
        """All that are not finished."""
        yield from self._running
        yield from self._waiting

    def add(self, sequence: Sequence) -> None:
        assert blocks_for(sequence.max_length) <= self.pool.num_blocks, "the engine checks this"
        sequence.rank = self._arrivals + PRIORITY_PLACES * sequence.request.priority
        self._arrivals += 1
        insort(self._waiting, sequence, key=_by_rank)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, running or waiting; its blocks have an owner less."""
        (self._running if sequence in self._running else self._waiting).remove(sequence)
        self._release(sequence)

    def schedule(self) -> SchedulerOutput:
        """Choose the next step's tokens; every one of them has its place in the cache."""
        self._admit()
        left = self._max_batch_tokens
        counts: dict[Sequence, int] = {}
        copies: dict[Sequence, tuple[int, int]] = {}
        decoding = [s for s in self._running if s.decodes]
        reading = [s for s in self._running if not s.decodes]
        self._draft(decoding, sum(s.num_uncomputed for s in reading))
        for sequence in decoding:
            if sequence.block_table:  # else it has just been preempted
                left -= self._place(sequence, 1 + len(sequence.drafts), counts, copies)
        # Decodes first, so that a long prompt never stalls those who are being answered.
        for sequence in reading:
            if not sequence.block_table:
                continue
            count = min(sequence.num_uncomputed, left)
            if count < sequence.whole:
                if any(not s.decodes for s in counts):
                    break  # it is the next to come, with a budget of its own
                count = sequence.prompt_length - sequence.num_computed
            if count > 0:
                left -= self._place(sequence, count, counts, copies)
        return SchedulerOutput(
            tuple(ScheduledSequence(s, counts[s]) for s in self._running if s in counts),
            tuple(copies[s] for s in copies if s in counts),
        )

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """So many more of a sequence's tokens are in the cache; full blocks can be found there."""
        before = sequence.num_computed // BLOCK_SIZE
        sequence.num_computed += num_tokens
        sequence.drafts = []
        if self._prefix_caching:
            full = sequence.num_computed // BLOCK_SIZE
            prefix_cache.extend(
                sequence.chain, sequence.root, sequence.token_ids, sequence.layout, full
            )
            for index in range(before, full):
                self.pool.remember(sequence.block_table[index], sequence.chain[index])

    def check_integrity(self) -> None:
        """Assert that no block is lost or shared wrongly, and each computed token has its place."""
        self.pool.check_integrity([s.block_table for s in self.sequences])
        assert all(not s.block_table and s.num_computed == 0 for s in self._waiting)
        for sequence in self._running:
            assert sequence.num_computed <= len(sequence.block_table) * BLOCK_SIZE
        for sequences in (self._waiting, self._running):
            assert [s.rank for s in sequences] == sorted(s.rank for s in sequences)
        assert len(self._running) <= self._max_num_seqs

    def _admit(self) -> None:
        """Start waiting sequences as far as seats and blocks go."""
        held = []  # forks whose prompt is just being computed: others may pass them
        while self._waiting:
            sequence = self._waiting[0]
            leader = self._leader(sequence)
            if leader is not None and leader.num_computed < leader.prompt_length:
                held.append(self._waiting.pop(0))
                continue
            blocks, num_computed = self._known_blocks(sequence, leader)
            needed = blocks_for(len(sequence.token_ids)) - len(blocks)
            needed += self.pool.num_free_of(blocks)
            # Each of the others may want a block soon.
            if self._running:
                needed += len(self._running)
            if len(self._running) >= self._max_num_seqs or needed > self.pool.num_free:
                if not self._preempt_above(sequence, needed):
                    break
                continue
            self._waiting.pop(0)
            self.pool.share(blocks)
            fresh = blocks_for(len(sequence.token_ids)) - len(blocks)
            sequence.block_table = blocks + self.pool.allocate(fresh)
            sequence.num_computed = num_computed
            if not sequence.started:
                sequence.started = True
                sequence.num_cached = num_computed
                self.stats.num_prompt_tokens += sequence.prompt_length
                self.stats.num_cached_tokens += num_computed
            insort(self._running, sequence, key=_by_rank)
        self._waiting[:0] = held

    def _leader(self, sequence: Sequence) -> Sequence | None:
        """The running sequence that a fork which has not started yet can share blocks with."""
        if sequence.request.fork_of is None or sequence.started:
            return None
        for other in self._running:
            if other.request.request_id == sequence.request.fork_of:
                return other
        return None

    def _known_blocks(self, sequence: Sequence, leader: Sequence | None) -> tuple[list[int], int]:
        """Blocks that hold the beginning of a sequence already, and how many of its tokens.

        One token at least is left to compute: the next one is chosen from its logits.
        """
        if leader is not None:
            count = sequence.prompt_length - 1
            return leader.block_table[: blocks_for(count)], count
        if not self._prefix_caching:
            return [], 0
        known = prefix_cache.hashes(
            sequence.chain, sequence.root, sequence.token_ids[:-1], sequence.layout
        )
        blocks = self.pool.find(known)
        return blocks, len(blocks) * BLOCK_SIZE

    def _draft(self, decoding: SequenceOf[Sequence], num_prompt_tokens: int) -> None:
        """Give these sequences drafts, where that makes the answers come sooner."""
        drafters = [s.drafter for s in decoding if s.drafter is not None]
        if not 0 < len(decoding) <= _MOST_DRAFTING or len(drafters) < len(decoding):
            return
        if not self._step_costs.knows(company(decoding)):
            return
        budget = self._max_batch_tokens
        num_prompt_rows = min(num_prompt_tokens, budget - len(decoding))
        guesses = [self._guess(*both) for both in zip(decoding, drafters, strict=True)]
        counts, price = choose_rows(
            guesses,
            self._step_costs,
            min(drafter.credit for drafter in drafters),
            budget // _PROMPT_SHARE if num_prompt_rows else budget - len(decoding),
            num_prompt_rows,
        )
        for sequence, drafter, guess, count in zip(
            decoding, drafters, guesses, counts, strict=True
        ):
            sequence.drafts = guess.token_ids[:count]
            drafter.pay(price)

    def _guess(self, sequence: Sequence, drafter: Drafter) -> Guess:
        """What may follow, as far as it has a place."""
        room = len(sequence.block_table) * BLOCK_SIZE - len(sequence.token_ids)
        # Drafts preempt nobody: each sequence may need a block, and one for a copy.
        room += BLOCK_SIZE * (self.pool.num_free >= 2 * len(self._running))
        most = max(min(MOST_DRAFTS, sequence.max_length - len(sequence.token_ids) - 1, room), 0)
        # Asked even where nothing fits: it follows the text.
        guess = drafter.guess(sequence.token_ids, most)
        if sequence.constraint is None or most == 0:
            return guess
        if forced := sequence.constraint.forced()[:most]:
            guess = Guess(forced, [FORCED_CHANCE ** (i + 1) for i in range(len(forced))])
        count = sequence.constraint.count_allowed(guess.token_ids)
        return Guess(guess.token_ids[:count], guess.chances[:count])

    def _place(
        self,
        sequence: Sequence,
        count: int,
        counts: dict[Sequence, int],
        copies: dict[Sequence, tuple[int, int]],
    ) -> int:
        """Find blocks for so many more tokens; the tokens that this takes of the budget.

        A sequence that finds none waits for a step: another one ends, or an older one preempts it.
        """
        table = sequence.block_table
        missing = blocks_for(sequence.num_computed + count) - len(table)
        first = sequence.num_computed // BLOCK_SIZE
        shared = first < len(table) and self.pool.is_shared(table[first])
        freed = 0
        while missing + shared > self.pool.num_free:
            victim = self._running[-1]
            if victim is sequence:
                sequence.drafts = []
                return -freed
            freed += counts.pop(victim, 0)
            self._preempt(victim)
            # The victim may have been the other owner.
            shared = first < len(table) and self.pool.is_shared(table[first])
        if shared:
            (own,) = self.pool.allocate(1)
            copies[sequence] = (table[first], own)
            self.pool.free([table[first]])
            table[first] = own
        elif first < len(table):
            self.pool.forget(table[first])
        table += self.pool.allocate(max(missing, 0))
        counts[sequence] = count
        return count - freed

    def _preempt_above(self, sequence: Sequence, needed: int) -> bool:
        """Make room for a waiting sequence by one that ranks behind it; whether there was any."""
        behind = [s for s in self._running if s.rank > sequence.rank]
        mine = sum(len(s.block_table) for s in behind) + self.pool.num_free
        if not behind or needed > mine + len(behind):
            return False
        self._preempt(behind[-1])
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.stats.num_preemptions += 1
        self._running.remove(sequence)
        self._release(sequence)
        insort(self._waiting, sequence, key=_by_rank)

    def _release(self, sequence: Sequence) -> None:
        self.pool.free(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed = 0
        sequence.drafts = []


def company(sequences: Iterable[Sequence]) -> tuple[int, ...]:
    """Who decodes together."""
    return tuple(s.request.request_id for s in sequences)


def blocks_for(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


def _by_rank(sequence: Sequence) -> int:
    return sequence.rank
