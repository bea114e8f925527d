"""Requests in, tokens out, step by step. Knows no text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from glimmer.architecture import TextLayout
from glimmer.engine.batch import build_step, logprobs_wanted
from glimmer.engine.block_pool import BlockPool
from glimmer.engine.request import Request
from glimmer.engine.scheduler import ScheduledSequence, Scheduler, blocks_for, company
from glimmer.engine.sequence import FinishReason, Sequence
from glimmer.engine.speculation import Drafter
from glimmer.engine.step_costs import StepCosts
from glimmer.errors import (
    GenerationError,
    GlimmerError,
    InvalidParameterError,
    OutOfMemoryError,
    PromptTooLongError,
    QueueFullError,
)
from glimmer.native import BLOCK_SIZE, StepResult
from glimmer.native.runner import Cache, Runner

# Larger batches read the weights less often, which no longer shows, and hold more memory.
MAX_BATCH_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log probabilities under the model's own logits, before any sampling value."""

    logprob: float
    """Of the token that was chosen."""
    top: tuple[tuple[int, float], ...]
    """(token id, log probability) of the likeliest, first things first."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """One token of one request; a step may give several, in order."""

    request_id: int
    token_id: int | None
    """None only with an error."""
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None
    error: GlimmerError | None = None
    num_cached_tokens: int = 0
    """Tokens of the prompt that the prefix cache held."""


@dataclass(frozen=True, slots=True)
class BackendStats:
    """One of the servers elsewhere that run the network."""

    name: str
    is_up: bool
    num_running: int
    """Requests that this process has under way there."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """How the engine stands, and what it has done since it was made."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_steps: int
    num_preemptions: int
    num_prompt_tokens: int
    num_cached_tokens: int
    """Of these, tokens that the prefix cache held."""
    num_drafts: int
    num_accepted_drafts: int
    num_retries: int = 0
    """Requests that another backend got, since the first one failed."""
    backends: tuple[BackendStats, ...] = ()
    """Where the network runs elsewhere; there are no blocks then."""


class Engine:
    """Runs many requests at once on one model and one KV cache.

    Each request's tokens are, bit for bit, those that it would get alone, whatever runs beside it.
    A request that fails ends with its own error, the others go on. At most ``max_waiting`` requests
    may wait; None for any number.

    Not for use from several threads at a time.
    """

    def __init__(
        self,
        model: Runner,
        cache: Cache,
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        max_waiting: int | None = None,
        prefix_caching: bool = True,
        speculation: bool = True,
    ) -> None:
        self._model = model
        self._cache = cache
        self._max_model_len = max_model_len
        self._max_waiting = max_waiting
        self._speculation = speculation
        self._costs = StepCosts()
        self._scheduler = Scheduler(
            BlockPool(cache.num_blocks),
            max_num_seqs,
            max(max_batch_tokens, max_num_seqs),
            prefix_caching=prefix_caching,
            step_costs=self._costs,
        )
        self._sequences: dict[int, Sequence] = {}
        self._num_steps = self._num_drafts = self._num_accepted = 0

    @property
    def num_unfinished(self) -> int:
        return len(self._sequences)

    @property
    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_blocks=scheduler.pool.num_blocks,
            num_free_blocks=scheduler.pool.num_free,
            num_steps=self._num_steps,
            num_preemptions=scheduler.stats.num_preemptions,
            num_prompt_tokens=scheduler.stats.num_prompt_tokens,
            num_cached_tokens=scheduler.stats.num_cached_tokens,
            num_drafts=self._num_drafts,
            num_accepted_drafts=self._num_accepted,
        )

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidParameterError: an empty prompt, a token id or bias outside the vocabulary, a
                prompt without the tokens that say where its answer goes (see Blanks), a layout
                for a network that has none, a constraint that cannot be read.
            PromptTooLongError: the prompt leaves no room for an answer.
            OutOfMemoryError: the longest answer asked for would not fit in the whole KV cache.
            QueueFullError: too many requests wait already.
        """
        self._check(request)
        assert request.request_id not in self._sequences
        length = len(request.prompt_token_ids)
        longest = min(length + request.params.max_new_tokens, self._max_model_len)
        if blocks_for(longest) > (num_blocks := self._cache.num_blocks):
            raise OutOfMemoryError(
                f"Prompt and answer may take {longest} tokens, but the KV cache holds "
                f"{num_blocks * BLOCK_SIZE}. Ask for a shorter answer, or allow more memory for it."
            )
        architecture = self._model.architecture
        layout = request.layout
        if layout is None and architecture.blanks is not None:
            layout = architecture.layout(request.prompt_token_ids)
        constraint = request.make_constraint() if request.make_constraint is not None else None
        drafts = self._speculation and request.params.speculation
        drafter = Drafter() if drafts else None
        sequence = Sequence(request, longest, layout, constraint, drafter)
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: int) -> None:
        """Drop a request; one that has finished already is no error."""
        if (sequence := self._sequences.pop(request_id, None)) is not None:
            self._scheduler.finish(sequence)

    def is_starting(self, request_id: int) -> bool:
        return False  # what is refused is refused at once

    def wake(self) -> None:
        pass  # a step never waits

    def close(self) -> None:
        pass

    def step(self) -> list[StepOutput]:
        """Run one step; an output for each token that came of it and each request that failed."""
        output = self._scheduler.schedule()
        if not output.scheduled:
            assert not self._sequences, "a request waits for what nobody will give"
            return []
        for source, target in output.copies:
            self._cache.copy_block(source, target)
        self._num_steps += 1
        return list(self._run(output.scheduled))

    def check_integrity(self) -> None:
        """Assert that no block is lost or shared wrongly."""
        self._scheduler.check_integrity()

    def _run(self, scheduled: SequenceOf[ScheduledSequence]) -> Iterator[StepOutput]:
        """A step of all; where that fails, one of each, so that only those at fault end."""
        try:
            start = time.perf_counter()
            step = build_step(scheduled, self._model.architecture.vocab_size)
            result = self._model.step(self._cache, step)
            seconds = time.perf_counter() - start
        except (GlimmerError, MemoryError) as error:
            if len(scheduled) == 1:
                yield self._fail(scheduled[0].sequence, error)
                return
            for item in scheduled:
                yield from self._run([item])
            return
        if all(item.sequence.decodes for item in scheduled):
            who = company(item.sequence for item in scheduled)
            self._costs.learn(who, len(who), sum(i.num_tokens for i in scheduled), seconds)
        row = 0
        for item in scheduled:
            num_logits = item.num_logits
            if num_logits:
                yield from self._take(item, result, row)
            else:
                self._scheduler.computed(item.sequence, item.num_tokens)
            row += num_logits

    def _take(
        self, item: ScheduledSequence, result: StepResult, first_row: int
    ) -> Iterator[StepOutput]:
        """The tokens that a sequence got: one, and one more for each draft that was right."""
        sequence, drafts = item.sequence, item.sequence.drafts
        outputs: list[StepOutput] = []
        error: GlimmerError | None = None
        reason: FinishReason | None = None
        for row in range(first_row, first_row + len(drafts) + 1):
            token_id = int(result.token_ids[row])
            if token_id < 0:
                error = GenerationError(
                    "The model's logits held NaN or infinity, or everything was ruled out, so no "
                    "token could be chosen. Where nothing was ruled out, the weights are damaged, "
                    'or overflow as stored: try weights="float32".'
                )
                break
            try:
                reason = sequence.append(token_id)
            except GlimmerError as refusal:
                error = refusal
                break
            outputs.append(_output(sequence, token_id, result, row, reason))
            at = row - first_row
            if reason is not None or at == len(drafts) or drafts[at] != token_id:
                break
        num_accepted = max(len(outputs) - 1, 0)
        self._num_drafts += len(drafts)
        self._num_accepted += num_accepted
        if sequence.drafter is not None:
            sequence.drafter.earn(num_accepted)
        if error is not None:
            return iter([*outputs, self._fail(sequence, error)])
        self._scheduler.computed(sequence, item.num_tokens - len(drafts) + num_accepted)
        if reason is not None:
            self.abort(sequence.request.request_id)
        return iter(outputs)

    def _fail(self, sequence: Sequence, error: GlimmerError | MemoryError) -> StepOutput:
        self.abort(sequence.request.request_id)
        if isinstance(error, MemoryError):
            error = OutOfMemoryError("There was not enough memory for a step of this request.")
        return StepOutput(
            sequence.request.request_id, None, None, "error", error, sequence.num_cached
        )

    def _check(self, request: Request) -> None:
        if self._max_waiting is not None and self._scheduler.num_waiting >= self._max_waiting:
            raise QueueFullError(
                f"{self._scheduler.num_waiting} requests wait already, and no more may. Try again "
                "later."
            )
        check_request(request, self._model.architecture.vocab_size, self._max_model_len)
        if request.layout is not None:
            self._check_layout(request.layout, len(request.prompt_token_ids))

    def _check_layout(self, layout: TextLayout, length: int) -> None:
        if not self._model.architecture.fills_blanks:
            raise InvalidParameterError(
                "This network takes its tokens in their order alone: leave out the layout."
            )
        blocks = layout.block_positions
        assert blocks is not None, "a network that fills blanks has two rows of positions"
        assert len(layout.positions) == len(blocks) == length >= layout.context_length


def check_request(request: Request, vocab_size: int, max_model_len: int) -> None:
    """Whether a network can run a request at all.

    Raises:
        InvalidParameterError, PromptTooLongError
    """
    length = len(request.prompt_token_ids)
    if length == 0:
        raise InvalidParameterError("The prompt holds no token; give at least one.")
    if length >= max_model_len:
        raise PromptTooLongError(
            f"The prompt takes {length} tokens, but the context holds {max_model_len} and the "
            "answer needs at least one. Shorten the prompt or ask for a longer context."
        )
    if (request.params.logprobs or 0) > vocab_size:
        raise InvalidParameterError(
            f"logprobs is {request.params.logprobs}, but the vocabulary has {vocab_size} tokens."
        )
    for what, ids in (
        ("prompt", request.prompt_token_ids),
        ("logit_bias", request.params.logit_bias),
    ):
        for token_id in ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidParameterError(
                    f"Token id {token_id} in the {what} is outside the vocabulary: ids run from 0 "
                    f"to {vocab_size - 1}."
                )


def _output(
    sequence: Sequence, token_id: int, result: StepResult, row: int, reason: FinishReason | None
) -> StepOutput:
    wanted = logprobs_wanted(sequence.request.params)
    logprobs = None
    if wanted >= 0:
        ids, values = result.top_ids[row, :wanted], result.top_logprobs[row, :wanted]
        logprobs = TokenLogprobs(
            float(result.logprobs[row]),
            tuple(zip(map(int, ids), map(float, values), strict=True)),
        )
    return StepOutput(
        sequence.request.request_id,
        token_id,
        logprobs,
        reason,
        num_cached_tokens=sequence.num_cached,
    )
