"""The way of a job through the server: admitted, run, accounted for. Knows no dialect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from starlette.types import ASGIApp

from glimmer.async_llm import AsyncLLM
from glimmer.errors import GlimmerError
from glimmer.native.model import Float32Array
from glimmer.outputs import RequestOutput, Usage
from glimmer.server import jobs
from glimmer.server.access import Access, Caller
from glimmer.server.config import ServerConfig
from glimmer.server.errors import STATUS, ApiError
from glimmer.server.jobs import ChatJob, Job, Totals
from glimmer.server.ledger import UsageRecord
from glimmer.server.limits import Admission
from glimmer.server.metrics import Metrics
from glimmer.server.models import ModelPool
from glimmer.server.offline.folder import JobFolder
from glimmer.server.offline.runner import Runner
from glimmer.server.paths import default_jobs_dir

_CLIENT_GONE = STATUS["client_gone"]


@dataclass(frozen=True, slots=True)
class Completed:
    model: AsyncLLM
    outputs: list[RequestOutput]
    usage: Usage


class Service:
    """What all dialects share."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.access = Access(config)
        self.pool = ModelPool(config.models, config.aliases, config.memory)
        self.metrics = Metrics(self.pool.loaded)
        self.metrics.watch(self.access.ledger)
        folder = JobFolder(config.jobs_dir or default_jobs_dir())
        self.runner = Runner(folder, self.access)
        self.live_requests: set[tuple[str | None, str]] = set()
        """Request ids under way, by key."""
        self.is_draining = False
        self.failure: GlimmerError | None = None
        """Why the first model could not be loaded."""

    async def start(self, app: ASGIApp) -> None:
        """Load the first model; until then requests are told to come again. ``app`` answers what
        was left here."""
        try:
            await self.runner.read()
            await self.pool.start()
            self.runner.start(app)
        except GlimmerError as error:
            self.failure = error  # told by whoever runs the server

    async def aclose(self) -> None:
        await self.runner.aclose()
        await self.pool.aclose()
        await asyncio.to_thread(self.access.close)

    async def complete(self, job: Job, caller: Caller) -> Completed:
        """Run a job to its end.

        Raises: ApiError.
        """
        job = self._with_adapter(job)
        account = await self._admit(job.model, caller, job.adapter)
        totals = Totals()
        try:
            async with self.pool.use(job.model) as llm:
                outputs = await jobs.complete(llm, job, totals)
        except BaseException as error:
            await account.close(_status(error), totals.usage, totals.outputs)
            raise
        await account.close(200, totals.usage, totals.outputs)
        return Completed(llm, outputs, totals.usage)

    async def stream(self, job: Job, caller: Caller) -> Streaming:
        """Start a job; what is refused is refused here.

        Raises: ApiError.
        """
        job = self._with_adapter(job)
        account = await self._admit(job.model, caller, job.adapter)
        stack = AsyncExitStack()
        try:
            llm = await stack.enter_async_context(self.pool.use(job.model))
            outputs = await jobs.stream(llm, job)
        except BaseException as error:
            await stack.aclose()
            await account.close(_status(error), Usage(0, 0))
            raise
        return Streaming(job, llm, outputs, stack, account)

    async def embed(
        self, model: str, prompts: Sequence[str | Sequence[int]], caller: Caller
    ) -> tuple[Float32Array, Usage]:
        """A vector for each text, float32 ``[len(prompts), hidden_size]``.

        Raises: ApiError.
        """
        if self.pool.split(model)[1] is not None:
            raise ApiError(
                "unsupported",
                "Vectors are made by the model alone, without an adapter: leave that out of the "
                "model's name.",
                param="model",
            )
        account = await self._admit(model, caller)
        usage = Usage(0, 0)
        try:
            async with self.pool.use(model) as llm:
                vectors, num_tokens = await llm.embed(prompts)
            usage = Usage(num_tokens, 0)
        except BaseException as error:
            told = jobs.refusal(error) if isinstance(error, GlimmerError) else error
            await account.close(_status(told), usage)
            raise told from error
        await account.close(200, usage)
        return vectors, usage

    def resolve(self, name: str, caller: Caller, adapter: str | None = None) -> str:
        """The model's own name. ``adapter`` is asked for beside it, where ``name`` has none.

        Raises:
            ApiError: there is no such model, or the caller may not use it.
        """
        key = caller.key
        model = self.pool.resolve(name, None if key is None else key.models)
        if key is not None:
            asked, named = self.pool.split(name)
            allowed = [model, asked]  # a key may name an alias
            if (adapter := named or adapter) is not None:
                allowed += [f"{model}:{adapter}", f"{asked}:{adapter}"]
            if not any(map(key.allows_model, allowed)):
                key.check(caller.scope, name)
        return model

    def _with_adapter(self, job: Job) -> Job:
        """A job that names an adapter with its model, as "model:adapter", in two fields.

        Raises:
            ApiError: it names another one as well.
        """
        model, adapter = self.pool.split(job.model)
        if adapter is None:
            return job
        if job.adapter not in (None, adapter):
            raise ApiError(
                "conflict",
                f"The model's name asks for the adapter {adapter!r:.100}, and adapter for "
                f"{job.adapter!r:.100}: give one.",
                param="adapter",
            )
        return replace(job, model=model, adapter=adapter)

    async def _admit(self, name: str, caller: Caller, adapter: str | None = None) -> _Account:
        if self.is_draining:
            raise ApiError(
                "draining", "The server is about to stop. Try again later.", retry_after_s=5
            )
        account = _Account(self, self.resolve(name, caller, adapter), caller)
        try:
            account.admission = self.access.admit(caller)
        except ApiError as error:
            self.metrics.rate_limited(error.kind)
            await account.close(_status(error), Usage(0, 0))
            raise
        return account


class Streaming:
    """A job under way. Its outputs are to be iterated once; ``aclose`` ends it in any case."""

    def __init__(
        self,
        job: Job,
        model: AsyncLLM,
        outputs: AsyncGenerator[RequestOutput, None],
        stack: AsyncExitStack,
        account: _Account,
    ) -> None:
        self.model = model
        self.totals = Totals()
        self._one_call = isinstance(job, ChatJob) and not job.parallel_tool_calls
        self._outputs = outputs
        self._stack = stack
        self._account = account

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        """Raises ApiError in the middle where a request fails."""
        try:
            async for output in self._outputs:
                if output.error is not None:
                    raise output.error
                self.totals.add(output)
                yield _with_first_call(output) if self._one_call else output
        except GlimmerError as error:
            told = jobs.refusal(error)
            await self.aclose(_status(told))
            raise told from error
        except Exception:
            await self.aclose(500)
            raise
        await self.aclose(200)

    async def aclose(self, status: int = _CLIENT_GONE) -> None:
        await self._outputs.aclose()
        await self._stack.aclose()
        await self._account.close(status, self.totals.usage, self.totals.outputs)


class _Account:
    """Counts a job once, whatever its end."""

    def __init__(self, service: Service, model: str, caller: Caller) -> None:
        self._service = service
        self._model = model
        self._caller = caller
        self._start = time.perf_counter()
        self._time = datetime.now(UTC)
        self._is_open = True
        self.admission: Admission | None = None

    async def close(self, status: int, usage: Usage, outputs: Sequence[RequestOutput] = ()) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if self.admission is not None:
            self.admission.release(usage.prompt_tokens + usage.completion_tokens)
        self._service.metrics.finished(self._model, usage, outputs)
        firsts = [o.timing.time_to_first_token_s for o in outputs if o.token_ids]
        recorded = self._service.access.record(
            UsageRecord(
                time=self._time,
                key_id=self._caller.key_id,
                project=self._caller.project,
                model=self._model,
                endpoint=self._caller.endpoint,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                latency_s=time.perf_counter() - self._start,
                time_to_first_token_s=min(firsts, default=None),
                status=status,
            )
        )
        await recorded


def _with_first_call(output: RequestOutput) -> RequestOutput:
    return replace(
        output,
        tool_calls=output.tool_calls[:1],
        tool_call_deltas=tuple(e for e in output.tool_call_deltas if e.index == 0),
    )


def _status(error: BaseException) -> int:
    if isinstance(error, asyncio.CancelledError):
        return _CLIENT_GONE
    if isinstance(error, ApiError):
        return STATUS[error.kind]
    return 500
