"""A scheduler's choice as the arrays of one native step."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from glimmer.engine.sampling_params import SamplingParams
from glimmer.engine.scheduler import ScheduledSequence
from glimmer.engine.sequence import Sequence
from glimmer.native import SamplingInput, StepInput
from glimmer.native.model import Float32Array, Int32Array


def build_step(scheduled: SequenceOf[ScheduledSequence], vocab_size: int) -> StepInput:
    """The flat batch; in order, a row for each token whose next one is wanted."""
    token_ids: list[int] = []
    logit_rows: list[int] = []
    for item in scheduled:
        sequence = item.sequence
        start = sequence.num_computed
        drafts = sequence.drafts
        token_ids += sequence.token_ids[start : start + item.num_tokens - len(drafts)]
        token_ids += drafts
        logit_rows += range(len(token_ids) - item.num_logits, len(token_ids))
    tables = [item.sequence.block_table for item in scheduled]
    block_tables = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(block_tables, tables, strict=True):
        row[: len(table)] = table
    positions, block_positions, context_lengths = _layouts(scheduled)
    adapters = [item.sequence.request.adapter for item in scheduled]
    loras = [None if adapter is None else adapter.lora for adapter in adapters]
    prefixes = [None if adapter is None else adapter.prefix for adapter in adapters]
    return StepInput(
        positions=positions,
        block_positions=block_positions,
        context_lengths=context_lengths,
        token_ids=np.array(token_ids, np.int32),
        query_lengths=np.array([item.num_tokens for item in scheduled], np.int32),
        kv_lengths=np.array(
            [item.sequence.num_computed + item.num_tokens for item in scheduled], np.int32
        ),
        block_tables=block_tables,
        loras=loras if any(loras) else (),
        prefixes=prefixes if any(prefixes) else (),
        logit_rows=np.array(logit_rows, np.int32),
        sampling=build_sampling([i.sequence for i in scheduled if i.num_logits], vocab_size)
        if logit_rows
        else None,
    )


def _layouts(
    scheduled: SequenceOf[ScheduledSequence],
) -> tuple[Int32Array | None, Int32Array | None, Int32Array | None]:
    """Positions, block positions and context lengths, each None where the network has none."""
    layouts = [item.sequence.layout for item in scheduled]
    if layouts[0] is None:
        return None, None, None
    positions: list[int] = []
    block_positions: list[int] = []
    for item, layout in zip(scheduled, layouts, strict=True):
        assert layout is not None, "all sequences belong to one network"
        start = item.sequence.num_computed
        indices = range(start, start + item.num_tokens)
        positions += map(layout.position, indices)
        if layout.block_positions is not None:
            block_positions += map(layout.block_position, indices)
    return (
        np.array(positions, np.int32),
        np.array(block_positions, np.int32) if block_positions else None,
        np.array([layout.context_length for layout in layouts if layout], np.int32),
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """One choice of a token: after the sequence's text and so many of its drafts."""

    sequence: Sequence
    num_drafts: int

    @property
    def params(self) -> SamplingParams:
        return self.sequence.request.params

    @property
    def history(self) -> list[int]:
        """What the core reads, where a penalty needs it."""
        p = self.params
        if p.repetition_penalty == 1 and p.presence_penalty == 0 and p.frequency_penalty == 0:
            return []
        return self.sequence.token_ids + self.sequence.drafts[: self.num_drafts]


def build_sampling(sequences: SequenceOf[Sequence], vocab_size: int) -> SamplingInput:
    """How each row chooses: for every sequence one after its text and one after each draft."""
    rows = [_Row(s, i) for s in sequences for i in range(len(s.drafts) + 1)]
    params = [row.params for row in rows]
    histories = [row.history for row in rows]
    prompt_lengths = [
        min(row.sequence.prompt_length, len(history))
        for row, history in zip(rows, histories, strict=True)
    ]
    biases = [p.logit_bias for p in params]
    allowed, allowed_rows = _masks(sequences, vocab_size)

    def floats(name: str) -> Float32Array:
        return np.array([getattr(p, name) for p in params], np.float32)

    return SamplingInput(
        temperature=floats("temperature"),
        top_k=np.array([p.top_k for p in params], np.int32),
        top_p=floats("top_p"),
        min_p=floats("min_p"),
        seed=np.array([row.sequence.request.seed for row in rows], np.uint64),
        position=np.array([len(r.sequence.token_ids) + r.num_drafts for r in rows], np.int64),
        repetition_penalty=floats("repetition_penalty"),
        presence_penalty=floats("presence_penalty"),
        frequency_penalty=floats("frequency_penalty"),
        history=np.array([t for h in histories for t in h], np.int32),
        history_offsets=_offsets(list(map(len, histories))),
        prompt_lengths=np.array(prompt_lengths, np.int32),
        bias_ids=np.array([t for b in biases for t in b], np.int32),
        bias_values=np.array([v for b in biases for v in b.values()], np.float32),
        bias_offsets=_offsets(list(map(len, biases))),
        allowed=allowed,
        allowed_rows=allowed_rows,
        num_logprobs=max(logprobs_wanted(p) for p in params),
    )


def logprobs_wanted(params: SamplingParams) -> int:
    """Likeliest tokens to report; 0 for the chosen token's log probability alone, -1 for none."""
    if params.logprobs is not None:
        return params.logprobs
    return 0 if params.best_of is not None and params.best_of > params.n else -1


def _masks(
    sequences: SequenceOf[Sequence], vocab_size: int
) -> tuple[Int32Array | None, Int32Array | None]:
    bound = [s for s in sequences if s.constraint is not None]
    if not bound:
        return None, None
    words = -(-vocab_size // 32)
    masks = np.zeros((sum(len(s.drafts) + 1 for s in bound), words), np.int32)
    rows: list[int] = []
    count = 0
    for sequence in sequences:
        wanted = len(sequence.drafts) + 1
        if sequence.constraint is None:
            rows += [-1] * wanted
        else:
            sequence.constraint.fill(sequence.drafts, masks[count : count + wanted])
            rows += range(count, count + wanted)
            count += wanted
    return masks, np.array(rows, np.int32)


def _offsets(lengths: list[int]) -> Int32Array:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int32)]).astype(np.int32)
