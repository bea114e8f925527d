"""Requests in, tokens out, step by step. Knows no text."""

from __future__ import annotations

from dataclasses import dataclass

from glimmer.engine.batch import build_step
from glimmer.engine.block_pool import BlockPool
from glimmer.engine.request import Request
from glimmer.engine.scheduler import Scheduler
from glimmer.engine.sequence import FinishReason, Sequence
from glimmer.errors import (
    GenerationError,
    GlimmerError,
    InvalidParameterError,
    PromptTooLongError,
)
from glimmer.native import KVCache, NativeModel, StepResult

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
    """What one step gave one request."""

    request_id: int
    token_id: int | None
    """None only with an error."""
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None
    error: GlimmerError | None = None


class Engine:
    """Runs many requests at once on one model and one KV cache of ``num_blocks`` blocks.

    Not for use from several threads at a time.
    """

    def __init__(
        self, model: NativeModel, cache: KVCache, *, max_num_seqs: int, max_model_len: int
    ) -> None:
        self._model = model
        self._cache = cache
        self._max_model_len = max_model_len
        self._scheduler = Scheduler(
            BlockPool(cache.num_blocks),
            max_num_seqs,
            max(MAX_BATCH_TOKENS, max_num_seqs),
            whole_prompts=model.architecture.needs_whole_prompts,
        )
        self._sequences: dict[int, Sequence] = {}

    @property
    def num_unfinished(self) -> int:
        return len(self._sequences)

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidParameterError: an empty prompt, a token id or bias outside the vocabulary, a
                prompt without the tokens that say where its answer goes (see Blanks).
            PromptTooLongError: the prompt leaves no room for an answer.
        """
        self._check(request)
        assert request.request_id not in self._sequences
        length = len(request.prompt_token_ids)
        longest = min(length + request.params.max_new_tokens, self._max_model_len)
        architecture = self._model.architecture
        layout = architecture.layout(request.prompt_token_ids) if architecture.blanks else None
        sequence = Sequence(request, longest, layout)
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: int) -> None:
        """Drop a request; one that has finished already is no error."""
        if (sequence := self._sequences.pop(request_id, None)) is not None:
            self._scheduler.finish(sequence)

    def step(self) -> list[StepOutput]:
        """Run one step; an output for each request that got a token."""
        output = self._scheduler.schedule()
        if not output.scheduled:
            return []
        ending = [item.sequence for item in output.scheduled if item.reaches_end]
        result = self._model.step(self._cache, build_step(output))
        for item in output.scheduled:
            item.sequence.num_computed += item.num_tokens
        return [self._take(sequence, result, row) for row, sequence in enumerate(ending)]

    def check_integrity(self) -> None:
        """Assert that no block is lost or shared."""
        self._scheduler.check_integrity()

    def _take(self, sequence: Sequence, result: StepResult, row: int) -> StepOutput:
        request, token_id = sequence.request, int(result.token_ids[row])
        if token_id < 0:
            self.abort(request.request_id)
            error = GenerationError(
                "The model's logits held NaN or infinity, so no token could be chosen. The "
                'weights are damaged, or overflow as stored: try weights="float32".'
            )
            return StepOutput(request.request_id, None, None, "error", error)
        reason = sequence.append(token_id)
        if reason is not None:
            self.abort(request.request_id)
        return StepOutput(request.request_id, token_id, _logprobs(request, result, row), reason)

    def _check(self, request: Request) -> None:
        length = len(request.prompt_token_ids)
        if length == 0:
            raise InvalidParameterError("The prompt holds no token; give at least one.")
        if length >= self._max_model_len:
            raise PromptTooLongError(
                f"The prompt takes {length} tokens, but the context holds {self._max_model_len} "
                "and the answer needs at least one. Shorten the prompt or ask for a longer context."
            )
        vocab_size = self._model.architecture.vocab_size
        if (request.params.logprobs or 0) > vocab_size:
            raise InvalidParameterError(
                f"logprobs is {request.params.logprobs}, but the vocabulary has {vocab_size} "
                "tokens."
            )
        for what, ids in (
            ("prompt", request.prompt_token_ids),
            ("logit_bias", request.params.logit_bias),
        ):
            for token_id in ids:
                if not 0 <= token_id < vocab_size:
                    raise InvalidParameterError(
                        f"Token id {token_id} in the {what} is outside the vocabulary: ids run "
                        f"from 0 to {vocab_size - 1}."
                    )


def _logprobs(request: Request, result: StepResult, row: int) -> TokenLogprobs | None:
    wanted = request.params.logprobs
    if wanted is None:
        return None
    ids, logprobs = result.top_ids[row, :wanted], result.top_logprobs[row, :wanted]
    return TokenLogprobs(
        float(result.logprobs[row]),
        tuple(zip(map(int, ids), map(float, logprobs), strict=True)),
    )
