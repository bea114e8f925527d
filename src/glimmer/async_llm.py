"""``LLM`` for asyncio: one thread runs the engine, any number of tasks wait for their answers."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Unpack, overload

import numpy as np

from glimmer.engine import EngineStats, SamplingParams, TokenEngine
from glimmer.errors import GenerationError, GlimmerError
from glimmer.infilling import Infilling, InfillOptions, InfillOutput
from glimmer.llm import DEFAULT_MAX_NUM_SEQS, check_streamable
from glimmer.loader import LoadedModel, Weights, load
from glimmer.native.model import Float32Array
from glimmer.outputs import RequestOutput
from glimmer.session import (
    Adapters,
    ChatOptions,
    GenerateOptions,
    Group,
    KVCacheKind,
    Messages,
    Params,
    Prepared,
    Prompt,
    Session,
    Tools,
)
from glimmer.text_model import TextModel

_Delivery = list[RequestOutput] | BaseException
_Embedding = tuple[Sequence[int], concurrent.futures.Future[Float32Array]]


class _Channel:
    """Brings the outputs of some prompts from the engine's thread to one task.

    The thread shows what is new only when the task has taken what came before, so that a slow
    reader costs nothing.
    """

    def __init__(self, prepared: Sequence[Prepared], stream: bool) -> None:
        self.prepared = prepared
        self.groups: list[Group] = []
        self._stream = stream
        self.is_told = not stream
        """Whether the task knows that its requests have begun; one that does not stream need not
        know."""
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[_Delivery] = asyncio.Queue()
        self.is_wanted = True
        """Whether the task waits; set by it, cleared by the thread."""

    # In the engine's thread

    @property
    def is_finished(self) -> bool:
        return all(g.is_finished and not g.is_pending for g in self.groups)

    def show(self) -> None:
        if not self.is_wanted:
            return
        if self._stream:
            if any(g.is_pending for g in self.groups):
                self._deliver([output for g in self.groups for output in g.news()])
        elif all(g.is_finished for g in self.groups):
            self._deliver([g.result() for g in self.groups])

    @property
    def refusal(self) -> GlimmerError | None:
        """Of a task that streams: why one of its requests was refused, before it knows of any."""
        if self.is_told:
            return None
        answers = (answer for group in self.groups for answer in group.answers)
        return next((a.error for a in answers if a.error is not None and not a.num_tokens), None)

    def tell_start(self, engine: TokenEngine) -> None:
        """To a task that streams, as soon as none of its requests can be refused any more."""
        answers = (answer for group in self.groups for answer in group.answers)
        if not any(engine.is_starting(answer.request.request_id) for answer in answers):
            self.is_told = True
            self._deliver([])

    def fail(self, error: BaseException) -> None:
        self._deliver(error)

    def _deliver(self, delivery: _Delivery) -> None:
        self.is_wanted = False
        # A loop that is closed has no task that waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, delivery)

    # In the task

    async def take(self) -> list[RequestOutput]:
        delivery = await self._queue.get()
        if isinstance(delivery, BaseException):
            raise delivery
        return delivery


class _Stream(AsyncGenerator[RequestOutput, None]):
    """A generator that ends its request also if it was never begun."""

    def __init__(
        self, outputs: AsyncGenerator[RequestOutput, None], leave: Callable[[], None]
    ) -> None:
        self._outputs = outputs
        self._leave = leave

    async def asend(self, value: None) -> RequestOutput:
        return await self._outputs.asend(value)

    async def athrow(self, *error: Any) -> RequestOutput:
        return await self._outputs.athrow(*error)

    async def aclose(self) -> None:
        try:
            await self._outputs.aclose()
        finally:
            self._leave()

    def __del__(self) -> None:
        self._leave()


class AsyncLLM:
    """``LLM`` for any number of tasks at once, in one event loop or several.

    Requests of all tasks run in one batch. Cancelling a task, or leaving its iterator, aborts its
    request. With ``max_waiting``, a request that finds so many others waiting ends with
    ``QueueFullError``. The other values are those of ``LLM``. ``async with`` ends the thread, as
    does ``aclose``.

    Raises: as ``LLM``.
    """

    def __init__(
        self,
        model: LoadedModel | str | os.PathLike[str],
        *,
        weights: Weights = "auto",
        family: str | None = None,
        num_threads: int | None = None,
        max_num_seqs: int = DEFAULT_MAX_NUM_SEQS,
        max_model_len: int | None = None,
        kv_cache: KVCacheKind = "auto",
        kv_memory: int | str | None = None,
        max_waiting: int | None = None,
        prefix_caching: bool = True,
        speculation: bool = True,
        adapters: Adapters = None,
    ) -> None:
        if not isinstance(model, LoadedModel):
            model = load(model, weights=weights, family=family, num_threads=num_threads)
        session = Session.native(
            model,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            kv_cache=kv_cache,
            kv_memory=kv_memory,
            max_waiting=max_waiting,
            prefix_caching=prefix_caching,
            speculation=speculation,
            adapters=adapters,
        )
        self._begin(session)

    @classmethod
    def over(cls, session: Session) -> AsyncLLM:
        """On an engine of any kind, which is closed with it."""
        llm = cls.__new__(cls)
        llm._begin(session)
        return llm

    def _begin(self, session: Session) -> None:
        self._session = session
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._channels: list[_Channel] = []
        self._embeddings: deque[_Embedding] = deque()
        self._closed: GlimmerError | None = None
        self._closing = threading.RLock()
        """Held to close, and to ask for something: nothing is asked of what is closed. A stream
        that is collected asks too, in the midst of whatever its thread does."""
        self._thread = threading.Thread(target=self._run, name="glimmer-engine", daemon=True)
        self._thread.start()
        _OPEN.add(self)

    @property
    def model(self) -> TextModel:
        """A ``LoadedModel`` where its network runs here."""
        return self._session.model

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self._session.max_model_len

    @property
    def default_params(self) -> SamplingParams:
        """What the release asks for; SamplingParams' own values where it is silent."""
        return self._session.default_params

    @property
    def stats(self) -> EngineStats:
        """As of some moment of late; each number is right by itself."""
        return self._session.stats

    @property
    def adapters(self) -> list[str]:
        """Names that ``adapter=`` may have."""
        return self._session.adapters.names

    async def load_adapter(self, name: str, folder: str | os.PathLike[str]) -> None:
        """As ``LLM.load_adapter``, in a thread of its own: requests are answered meanwhile."""
        await asyncio.to_thread(self._session.adapters.load, name, folder)

    def unload_adapter(self, name: str) -> None:
        """As ``LLM.unload_adapter``."""
        self._session.adapters.unload(name)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or its engine has failed: it answers nothing any more."""
        return self._closed is not None

    @property
    def memory_bytes(self) -> int:
        """Of the weights, the adapters and, when it is full, the KV cache."""
        return self._session.memory_bytes

    @overload
    async def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        tools: Tools = None,
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> RequestOutput: ...

    @overload
    async def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        tools: Tools = None,
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> AsyncGenerator[RequestOutput, None]: ...

    async def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        tools: Tools = None,
        *,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> RequestOutput | AsyncGenerator[RequestOutput, None]:
        """As ``LLM.chat``; with ``stream``, ``async for output in await llm.chat(...)``."""
        prepared = [
            await asyncio.to_thread(self._session.prepare_chat, messages, params, tools, **options)
        ]
        if stream:
            return await self._stream(prepared)
        (output,) = await self._finish(prepared)
        if output.error is not None:
            raise output.error
        return output

    @overload
    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> list[RequestOutput]: ...

    @overload
    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        stream: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[RequestOutput, None]: ...

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        stream: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> list[RequestOutput] | AsyncGenerator[RequestOutput, None]:
        """As ``LLM.generate``; with ``stream``, ``async for output in await llm.generate(...)``."""
        prepared = await asyncio.to_thread(
            self._session.prepare_prompts, prompts, params, **options
        )
        if stream:
            return await self._stream(prepared)
        outputs = await self._finish(prepared) if prepared else []
        if len(outputs) == 1 and outputs[0].error is not None:
            raise outputs[0].error
        return outputs

    @overload
    async def infill(
        self,
        text: str,
        params: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        **options: Unpack[InfillOptions],
    ) -> InfillOutput: ...

    @overload
    async def infill(
        self,
        text: str,
        params: SamplingParams | None = None,
        *,
        stream: Literal[True],
        **options: Unpack[InfillOptions],
    ) -> AsyncGenerator[InfillOutput, None]: ...

    async def infill(
        self,
        text: str,
        params: SamplingParams | None = None,
        *,
        stream: bool = False,
        **options: Unpack[InfillOptions],
    ) -> InfillOutput | AsyncGenerator[InfillOutput, None]:
        """As ``LLM.infill``; with ``stream``, ``async for output in await llm.infill(...)``."""
        infilling = await asyncio.to_thread(Infilling, self._session, text, params, **options)
        outputs = self._fill(infilling, await self._stream([infilling.prepare()]))
        if stream:
            return outputs
        last = None
        async for output in outputs:
            last = output
        assert last is not None, "a text without a blank is refused"
        return replace(last, delta=last.text)

    async def embed(self, prompts: Prompt | Sequence[Prompt]) -> tuple[Float32Array, int]:
        """A vector for each prompt (see ``LoadedModel.embed``), float32
        ``[len(prompts), hidden_size]``, and the number of their tokens.

        Raises:
            InvalidParameterError: no token, an id outside the vocabulary, or a network that runs
                elsewhere.
            PromptTooLongError: a prompt is longer than the context.
            TokenizerError: text for a model without a tokenizer.
        """
        self._session.check_embeds()
        given = await asyncio.to_thread(self._session.encode_prompts, prompts)
        vectors = []
        for ids in given:
            # One at a time: whoever goes away leaves little behind.
            future: concurrent.futures.Future[Float32Array] = concurrent.futures.Future()
            if not self._ask(functools.partial(self._embeddings.append, (ids, future))):
                assert self._closed is not None
                raise self._closed
            vectors.append(await asyncio.wrap_future(future))
        return np.stack(vectors), sum(map(len, given))

    async def aclose(self) -> None:
        """End the thread; requests that still run end with GenerationError."""
        await asyncio.to_thread(self._join)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # In a task

    async def _finish(self, prepared: Sequence[Prepared]) -> list[RequestOutput]:
        channel = self._open(prepared, stream=False)
        try:
            return await channel.take()
        finally:
            self._leave(channel)

    async def _stream(self, prepared: Sequence[Prepared]) -> AsyncGenerator[RequestOutput, None]:
        for p in prepared:
            check_streamable(p.requests[0].params)
        channel = self._open(prepared, stream=True)
        try:
            await channel.take()  # that it has started; refusals are raised here
        except BaseException:
            self._leave(channel)
            raise
        return _Stream(self._follow(channel), lambda: self._leave(channel))

    async def _fill(
        self, infilling: Infilling, outputs: AsyncGenerator[RequestOutput, None]
    ) -> AsyncGenerator[InfillOutput, None]:
        """The rest of the way of a text whose first request runs."""
        try:
            while True:
                async for output in outputs:
                    yield infilling.take(output)
                if infilling.is_finished:
                    return
                outputs = await self._stream([infilling.prepare()])
        finally:
            await outputs.aclose()

    async def _follow(self, channel: _Channel) -> AsyncGenerator[RequestOutput, None]:
        left = sum(len(p.requests) for p in channel.prepared)
        alone = len(channel.prepared) == 1
        try:
            while left:
                self._want(channel)
                for output in await channel.take():
                    if output.error is not None and alone:
                        raise output.error
                    left -= output.finish_reason is not None
                    yield output
        finally:
            self._leave(channel)

    def _open(self, prepared: Sequence[Prepared], stream: bool) -> _Channel:
        channel = _Channel(prepared, stream)
        if not self._ask(lambda: self._start(channel)):
            assert self._closed is not None
            raise self._closed
        return channel

    def _want(self, channel: _Channel) -> None:
        def show() -> None:
            channel.is_wanted = True
            channel.show()

        if not self._ask(show):
            assert self._closed is not None
            raise self._closed

    def _leave(self, channel: _Channel) -> None:
        self._ask(lambda: self._drop(channel))

    def _ask(self, command: Callable[[], None]) -> bool:
        """Have the thread do something; False if it has ended."""
        with self._closing:
            if self._closed is None:
                self._commands.put(command)
                self._session.engine.wake()
            return self._closed is None

    def _join(self) -> None:
        self._ask(lambda: self._end(GenerationError("This AsyncLLM was closed.")))
        self._thread.join()

    # In the engine's thread

    def _run(self) -> None:
        while self._closed is None:
            try:
                self._obey()
                # One, however many ask: those who wait for answers get a step in between.
                if self._closed is None and self._embeddings:
                    self._embed(*self._embeddings.popleft())
                if self._closed is None and self._session.engine.num_unfinished:
                    self._session.step()
                    self._show_all()
            except Exception as error:  # a mistake of ours: nobody may wait for ever
                failure = GenerationError("The engine has failed and is closed.")
                failure.__cause__ = error
                self._end(failure)
                raise

    def _obey(self) -> None:
        """Do what tasks have asked for; wait for that where nothing else is to be done."""
        while self._closed is None and (self._is_idle or not self._commands.empty()):
            self._commands.get()()

    @property
    def _is_idle(self) -> bool:
        return not self._session.engine.num_unfinished and not self._embeddings

    def _start(self, channel: _Channel) -> None:
        self._channels.append(channel)  # first: it is told of a mistake of ours too
        try:
            channel.groups = self._session.start(channel.prepared)
        except GlimmerError as error:
            self._channels.remove(channel)
            channel.fail(error)
            return
        self._show(channel)

    def _show_all(self) -> None:
        """Apart from ``_run``, which would hold the last one while it waits for the next request:
        its adapter may have been unloaded meanwhile."""
        for channel in list(self._channels):
            self._show(channel)

    def _show(self, channel: _Channel) -> None:
        if (refusal := channel.refusal) is not None:
            self._drop(channel)
            channel.fail(refusal)
        elif not channel.is_told:
            channel.tell_start(self._session.engine)
        else:
            channel.show()

    def _embed(self, ids: Sequence[int], future: concurrent.futures.Future[Float32Array]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(self._session.embed(ids))
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, (GlimmerError, MemoryError)):
                raise

    def _drop(self, channel: _Channel) -> None:
        self._session.forget(channel.groups)
        if channel in self._channels:
            self._channels.remove(channel)

    def _end(self, error: GlimmerError) -> None:
        with self._closing:
            self._closed = error
        # Whoever has asked before that is told.
        while not self._commands.empty():
            with contextlib.suppress(Exception):  # it may fail in the same way
                self._commands.get()()
        for channel in self._channels:
            channel.fail(error)
        for _, future in self._embeddings:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self._session.engine.close()


_OPEN: weakref.WeakSet[AsyncLLM] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread must not be inside the core when the interpreter goes."""
    for llm in list(_OPEN):
        llm._join()
