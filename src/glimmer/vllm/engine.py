"""The engine elsewhere as a ``TokenEngine``: requests go to vLLM servers, tokens come back.

A thread of its own runs the event loop in which all connections live.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from glimmer.engine import EngineStats, Request, StepOutput, check_request
from glimmer.errors import EngineUnavailableError, InvalidParameterError, QueueFullError
from glimmer.vllm.answering import Answering
from glimmer.vllm.backend import Backend
from glimmer.vllm.backends import Backends, no_engine

_T = TypeVar("_T")
HEALTH_S = 5.0
"""Between two health checks."""
_HEALTH_TIMEOUT_S = 5.0
_CONNECT_S = 5.0
_POLL_S = 0.25
# vLLM's server closes a connection that was idle for 5 seconds: it is not to be used again then.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=2.0)
# Tokens come when they come: whether a server lives is for the health checks to say.
_TIMEOUT = httpx.Timeout(None, connect=_CONNECT_S)


@dataclass(slots=True)
class _Running:
    future: concurrent.futures.Future[None]
    is_starting: bool = True


@dataclass(frozen=True, slots=True)
class _Begun:
    request_id: int


class RemoteEngine:
    """See ``TokenEngine``. At most ``max_unfinished`` requests are under way.

    Raises:
        InvalidParameterError: ``max_unfinished`` is below 1, or there is no backend.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        model: str,
        *,
        vocab_size: int,
        max_model_len: int,
        max_unfinished: int,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """``model`` is the name that the backends serve, ``max_model_len`` what the model takes;
        ``on_close`` is called last."""
        if max_unfinished < 1 or not backends:
            raise InvalidParameterError("An engine elsewhere needs a backend and a request.")
        self.max_model_len = max_model_len
        """What model and backends take; the latter are known after ``connect``."""
        self._vocab_size = vocab_size
        self._max_unfinished = max_unfinished
        self._on_close = on_close
        self._running: dict[int, _Running] = {}
        self._events: queue.SimpleQueue[StepOutput | _Begun | None] = queue.SimpleQueue()
        self._num_steps = self._num_prompt_tokens = self._num_cached = self._num_retries = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="glimmer-vllm", daemon=True
        )
        self._thread.start()
        self._client, self._backends = self._call(self._open(backends, model))
        self._watch = asyncio.run_coroutine_threadsafe(
            self._backends.watch(HEALTH_S, _HEALTH_TIMEOUT_S), self._loop
        )

    def connect(self, timeout_s: float, *, give_up: Callable[[], bool] = lambda: False) -> None:
        """Wait until a backend is up.

        Raises:
            EngineUnavailableError: none was in time, or ``give_up`` says that none will be.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._call(self._backends.check(_HEALTH_TIMEOUT_S))
            if self._backends.any_up:
                break
            if give_up() or time.monotonic() >= deadline:
                raise EngineUnavailableError(
                    f"No engine can be used. {self._backends.problems}. Start vLLM there, or "
                    "mend the address."
                )
            time.sleep(_POLL_S)
        told = self._backends.max_model_len
        self.max_model_len = min(self.max_model_len, told or self.max_model_len)

    @property
    def num_unfinished(self) -> int:
        return len(self._running)

    @property
    def stats(self) -> EngineStats:
        starting = sum(running.is_starting for running in list(self._running.values()))
        return EngineStats(
            num_running=len(self._running) - starting,
            num_waiting=starting,
            num_blocks=0,
            num_free_blocks=0,
            num_steps=self._num_steps,
            num_preemptions=0,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached,
            num_drafts=0,
            num_accepted_drafts=0,
            num_retries=self._num_retries,
            backends=self._backends.stats,
        )

    def add_request(self, request: Request) -> None:
        """Raises as ``TokenEngine.add_request``."""
        if len(self._running) >= self._max_unfinished:
            raise QueueFullError(
                f"{len(self._running)} requests are under way already, and no more may. Try again "
                "later."
            )
        check_request(request, self._vocab_size, self.max_model_len)
        if not self._backends.any_up:
            raise no_engine()
        length = len(request.prompt_token_ids)
        answering = Answering(
            request,
            min(length + request.params.max_new_tokens, self.max_model_len),
            self._backends,
            self._client,
            emit=self._events.put,
            begun=lambda: self._events.put(_Begun(request.request_id)),
            retried=self._count_retry,
        )
        self._num_prompt_tokens += length
        self._running[request.request_id] = _Running(
            asyncio.run_coroutine_threadsafe(answering.run(), self._loop)
        )

    def is_starting(self, request_id: int) -> bool:
        running = self._running.get(request_id)
        return running is not None and running.is_starting

    def abort(self, request_id: int) -> None:
        # Its connection is closed, which is how vLLM hears of it.
        if (running := self._running.pop(request_id, None)) is not None:
            running.future.cancel()

    def step(self) -> list[StepOutput]:
        """All that has come; waits for the first of it."""
        self._num_steps += 1
        outputs: list[StepOutput] = []
        event = self._events.get() if self._running else None
        while True:
            if isinstance(event, _Begun) and event.request_id in self._running:
                self._running[event.request_id].is_starting = False
            elif isinstance(event, StepOutput) and event.request_id in self._running:
                outputs.append(event)
                if event.finish_reason is not None:
                    self._num_cached += event.num_cached_tokens
                    del self._running[event.request_id]
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return outputs

    def wake(self) -> None:
        self._events.put(None)

    def close(self) -> None:
        for request_id in list(self._running):
            self.abort(request_id)
        self._watch.cancel()
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._on_close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _count_retry(self) -> None:
        self._num_retries += 1

    # In the loop

    async def _open(
        self, backends: Sequence[Backend], model: str
    ) -> tuple[httpx.AsyncClient, Backends]:
        # No proxy of the environment's stands between; its certificates count (SSL_CERT_FILE).
        verify = ssl.create_default_context()
        at_sockets = {
            backend.url: httpx.AsyncHTTPTransport(verify, limits=_LIMITS, uds=str(backend.socket))
            for backend in backends
            if backend.socket is not None
        }
        client = httpx.AsyncClient(
            timeout=_TIMEOUT, limits=_LIMITS, trust_env=False, verify=verify, mounts=at_sockets
        )
        return client, Backends(backends, model, client)

    async def _end(self) -> None:
        me = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not me]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()
