"""A scheduler's choice as the arrays of one native step."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np

from glimmer.engine.scheduler import ScheduledSequence, SchedulerOutput
from glimmer.engine.sequence import Sequence
from glimmer.native import SamplingInput, StepInput
from glimmer.native.model import Int32Array


def build_step(output: SchedulerOutput) -> StepInput:
    """The flat batch; a logit row for each sequence whose last token is in it, in order."""
    scheduled = output.scheduled
    token_ids: list[int] = []
    logit_rows: list[int] = []
    for item in scheduled:
        start = item.sequence.num_computed
        token_ids += item.sequence.token_ids[start : start + item.num_tokens]
        if item.reaches_end:
            logit_rows.append(len(token_ids) - 1)
    tables = [item.sequence.block_table for item in scheduled]
    block_tables = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(block_tables, tables, strict=True):
        row[: len(table)] = table
    positions, block_positions, context_lengths = _layouts(scheduled)
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
        logit_rows=np.array(logit_rows, np.int32),
        sampling=build_sampling([i.sequence for i in scheduled if i.reaches_end])
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


def build_sampling(sequences: SequenceOf[Sequence]) -> SamplingInput:
    params = [s.request.params for s in sequences]
    # The core reads a history only where a penalty needs it.
    histories = [
        s.token_ids
        if p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0
        else []
        for s, p in zip(sequences, params, strict=True)
    ]
    prompt_lengths = [
        min(len(s.request.prompt_token_ids), len(h))
        for s, h in zip(sequences, histories, strict=True)
    ]
    biases = [p.logit_bias for p in params]
    wanted = [-1 if p.logprobs is None else p.logprobs for p in params]

    def floats(name: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.array([getattr(p, name) for p in params], np.float32)

    return SamplingInput(
        temperature=floats("temperature"),
        top_k=np.array([p.top_k for p in params], np.int32),
        top_p=floats("top_p"),
        min_p=floats("min_p"),
        seed=np.array([s.request.seed for s in sequences], np.uint64),
        position=np.array([len(s.token_ids) for s in sequences], np.int64),
        repetition_penalty=floats("repetition_penalty"),
        presence_penalty=floats("presence_penalty"),
        frequency_penalty=floats("frequency_penalty"),
        history=np.array([t for h in histories for t in h], np.int32),
        history_offsets=_offsets(list(map(len, histories))),
        prompt_lengths=np.array(prompt_lengths, np.int32),
        bias_ids=np.array([t for b in biases for t in b], np.int32),
        bias_values=np.array([v for b in biases for v in b.values()], np.float32),
        bias_offsets=_offsets(list(map(len, biases))),
        num_logprobs=max(wanted),
    )


def _offsets(lengths: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int32)]).astype(np.int32)
