"""What a client asks for, whatever dialect it speaks. Knows no HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glimmer.async_llm import AsyncLLM
from glimmer.engine import Constraint, SamplingParams
from glimmer.errors import (
    AdapterNotFoundError,
    EngineUnavailableError,
    GlimmerError,
    OutOfMemoryError,
    PromptTooLongError,
    QueueFullError,
    UsageError,
)
from glimmer.infilling import InfillMethod, InfillOutput
from glimmer.outputs import RequestOutput, Usage
from glimmer.server.errors import ApiError
from glimmer.session import ToolChoice

_RETRY_QUEUE_S = 2.0
_RETRY_ENGINE_S = 5.0
_MAX_FORM_CHARS = 1 << 17
"""Of a schema, a grammar or tools. What reads and follows longer ones takes the time of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    model: str
    sampling: Mapping[str, Any]
    """Values of SamplingParams that were asked for; the model's own stand for the others."""
    priority: int = 0
    adapter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatJob(Job):
    messages: Sequence[Mapping[str, object]]
    tools: Sequence[Mapping[str, object]] | None = None
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    thinking: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextJob(Job):
    prompts: Sequence[str | Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillJob(Job):
    text: str
    method: InfillMethod = "auto"


def sampling_params(llm: AsyncLLM, job: Job) -> SamplingParams:
    """Without a limit of its own, an answer may fill the context.

    Raises:
        ApiError: a value is not allowed.
    """
    _check_form(job)
    try:
        return replace(llm.default_params, **{"max_new_tokens": llm.max_model_len, **job.sampling})
    except GlimmerError as error:
        raise refusal(error) from error


def _check_form(job: Job) -> None:
    constraint: Constraint | None = job.sampling.get("constraint")
    if constraint is not None and len(constraint.value) > _MAX_FORM_CHARS:
        what, length = constraint.kind.replace("_", " "), len(constraint.value)
    elif isinstance(job, ChatJob) and job.tools and job.tool_choice not in ("auto", "none"):
        what, length = "tools to choose from", len(json.dumps(job.tools))
    else:
        return
    if length > _MAX_FORM_CHARS:
        raise ApiError(
            "invalid",
            f"The form of an answer ({what}) may have {_MAX_FORM_CHARS} characters, but this one "
            f"has {length}.",
        )


async def stream(llm: AsyncLLM, job: Job) -> AsyncGenerator[RequestOutput, None]:
    """The outputs as they come; what is refused is refused before the first.

    Raises: ApiError.
    """
    params = sampling_params(llm, job)
    try:
        if isinstance(job, ChatJob):
            return await llm.chat(
                job.messages,
                params,
                job.tools,
                tool_choice=job.tool_choice,
                thinking=job.thinking,
                priority=job.priority,
                adapter=job.adapter,
                stream=True,
            )
        if isinstance(job, InfillJob):
            outputs = await llm.infill(
                job.text,
                params,
                method=job.method,
                priority=job.priority,
                adapter=job.adapter,
                stream=True,
            )
            return _fills(outputs)
        assert isinstance(job, TextJob)
        return await llm.generate(
            job.prompts, params, priority=job.priority, adapter=job.adapter, stream=True
        )
    except GlimmerError as error:
        raise refusal(error) from error


async def _fills(
    outputs: AsyncGenerator[InfillOutput, None],
) -> AsyncGenerator[RequestOutput, None]:
    """Each blank as a prompt of its own, which is what is counted."""
    try:
        async for output in outputs:
            yield output.fills[-1]
    finally:
        await outputs.aclose()


async def complete(llm: AsyncLLM, job: Job, totals: Totals) -> list[RequestOutput]:
    """The finished outputs, those to one prompt beside each other. ``totals`` has them as far as
    they have come, also when this is cancelled.

    Raises: ApiError.
    """
    if "best_of" in job.sampling:
        outputs = await _best(llm, job)
        for output in outputs:
            totals.add(output)
        return outputs
    stream_of_job = await stream(llm, job)
    try:
        async for output in stream_of_job:
            if output.error is not None:
                raise output.error
            totals.add(output)
    except GlimmerError as error:
        raise refusal(error) from error
    finally:
        await stream_of_job.aclose()
    finished = sorted(totals.outputs, key=lambda output: (output.index, output.choice))
    if isinstance(job, ChatJob) and not job.parallel_tool_calls:
        return [replace(output, tool_calls=output.tool_calls[:1]) for output in finished]
    return finished


async def _best(llm: AsyncLLM, job: Job) -> list[RequestOutput]:
    """Which answers are the best is known when all have ended."""
    assert isinstance(job, TextJob)
    params = sampling_params(llm, job)
    try:
        outputs = await llm.generate(
            job.prompts, params, priority=job.priority, adapter=job.adapter
        )
        for output in outputs:
            if output.error is not None:
                raise output.error
    except GlimmerError as error:
        raise refusal(error) from error
    return [choice for output in outputs for choice in output.choices or (output,)]


def refusal(error: GlimmerError) -> ApiError:
    """What a client is told of an error of the model's."""
    match error:
        case ApiError():
            return error
        case PromptTooLongError():
            return ApiError("context_length", str(error), param="messages")
        case QueueFullError():
            return ApiError("queue_full", str(error), retry_after_s=_RETRY_QUEUE_S)
        case AdapterNotFoundError():
            return ApiError("model_not_found", str(error), param="adapter")
        case EngineUnavailableError():
            return ApiError("unavailable", str(error), retry_after_s=_RETRY_ENGINE_S)
        case OutOfMemoryError():
            return ApiError("context_length", str(error))
        case UsageError():
            return ApiError("invalid", str(error))
        case _:
            return ApiError("internal", str(error))


@dataclass(slots=True)
class Totals:
    """Tokens of a job, from its outputs: each prompt counts once, each answer for itself."""

    _last: dict[tuple[int, int], RequestOutput] = field(default_factory=dict)

    def add(self, output: RequestOutput) -> None:
        self._last[output.index, output.choice] = output

    @property
    def outputs(self) -> list[RequestOutput]:
        """The last of each answer."""
        return list(self._last.values())

    @property
    def usage(self) -> Usage:
        firsts = {o.index: o.usage for o in reversed(self.outputs)}
        return Usage(
            sum(u.prompt_tokens for u in firsts.values()),
            sum(o.usage.completion_tokens for o in self.outputs),
            sum(u.cached_tokens for u in firsts.values()),
        )
