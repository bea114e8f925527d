"""Which tokens run in the next step. Knows no model.

First come, first served. A sequence is admitted once blocks for its longest possible end are free,
so that one that runs can always go on. A step takes one token of every sequence that decodes and
fills the rest of its budget with pieces of prompts, the oldest first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from glimmer.engine.block_pool import BlockPool
from glimmer.engine.sequence import Sequence
from glimmer.native import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    sequence: Sequence
    num_tokens: int
    """Tokens of it that this step computes."""

    @property
    def reaches_end(self) -> bool:
        """Whether its last token is among them, so that a next one can be chosen."""
        return self.num_tokens == self.sequence.num_uncomputed


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    scheduled: tuple[ScheduledSequence, ...]


class Scheduler:
    """``whole_prompts``: a prompt is computed in one step, alone if it exceeds the budget."""

    def __init__(
        self,
        pool: BlockPool,
        max_num_seqs: int,
        max_batch_tokens: int,
        *,
        whole_prompts: bool = False,
    ) -> None:
        assert max_batch_tokens >= max_num_seqs, "every running sequence gets a token per step"
        self.pool = pool
        self._max_num_seqs = max_num_seqs
        self._max_batch_tokens = max_batch_tokens
        self._whole_prompts = whole_prompts
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def sequences(self) -> Iterator[Sequence]:
        """All that are not finished."""
        yield from self._running
        yield from self._waiting

    def add(self, sequence: Sequence) -> None:
        assert blocks_needed(sequence) <= self.pool.num_blocks, "the engine refuses what cannot fit"
        self._waiting.append(sequence)

    def schedule(self) -> SchedulerOutput:
        while self._waiting and len(self._running) < self._max_num_seqs:
            count = blocks_needed(self._waiting[0])
            if count > self.pool.num_free:
                break  # no overtaking: a large request would wait for ever
            sequence = self._waiting.popleft()
            sequence.block_table = self.pool.allocate(count)
            self._running.append(sequence)
        left = self._max_batch_tokens
        counts: dict[Sequence, int] = {}
        # Decodes first, so that a long prompt never stalls those who are being answered. A prompt's
        # last token is no decode: a short prompt would overtake an older one.
        for sequence in sorted(self._running, key=lambda s: s.in_prompt):
            count = min(sequence.num_uncomputed, left)
            if self._whole_prompts and sequence.in_prompt and count < sequence.num_uncomputed:
                if any(s.in_prompt for s in counts):
                    break  # it is the next to come, with a budget of its own
                count = sequence.num_uncomputed
            if count > 0:
                counts[sequence] = count
                left -= count
        # In order of arrival, whatever got its tokens first.
        return SchedulerOutput(
            tuple(ScheduledSequence(s, counts[s]) for s in self._running if s in counts)
        )

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, running or waiting, and free its blocks."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self.pool.free(sequence.block_table)
        sequence.block_table = []

    def check_integrity(self) -> None:
        self.pool.check_integrity([s.block_table for s in self.sequences])
        for sequence in self._running:
            assert len(sequence.token_ids) <= len(sequence.block_table) * BLOCK_SIZE


def blocks_needed(sequence: Sequence) -> int:
    return -(-sequence.max_length // BLOCK_SIZE)
