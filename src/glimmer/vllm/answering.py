"""One request at the backends, from its first token to its last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import httpx

from glimmer.engine import FinishReason, Request, StepOutput
from glimmer.engine import Sequence as EngineSequence
from glimmer.engine.batch import logprobs_wanted
from glimmer.errors import (
    EngineUnavailableError,
    GenerationError,
    GlimmerError,
    InvalidParameterError,
)
from glimmer.vllm.backend import Backend
from glimmer.vllm.backends import Backends, no_engine
from glimmer.vllm.body import completion_body
from glimmer.vllm.chunks import Chunk, StreamError, read_chunks, read_lines

_LOG = logging.getLogger("glimmer.server")
# vLLM's own reasons; what else may end an answer is an error.
_REASONS = {"stop": "stop", "length": "length", "repetition": "repetition"}
_MAX_ERROR_BYTES = 1 << 16
_MAX_BROKEN = 2
"""Backends that may fail at one request after they have taken it: it may be what breaks them."""
_END_S = 5.0
"""For what follows the last token."""


class _Failed(Exception):
    """A backend did not do it; another one may."""

    def __init__(self, told: GlimmerError, *, was_taken: bool = True) -> None:
        super().__init__(str(told))
        self.told = told
        """What the client hears if no other one does it."""
        self.was_taken = was_taken
        """Whether the backend has failed at this request, and not turned it away."""


class Answering:
    """Runs one request; what comes of it goes to ``emit``, in order."""

    def __init__(
        self,
        request: Request,
        max_length: int,
        backends: Backends,
        client: httpx.AsyncClient,
        *,
        emit: Callable[[StepOutput], None],
        begun: Callable[[], None],
        retried: Callable[[], None],
    ) -> None:
        """``max_length`` is of prompt and answer. ``begun`` is called when a backend has taken it.

        Raises:
            InvalidParameterError: its constraint cannot be read.
        """
        self._request = request
        # The end of an answer is found as in the engine of this process: by the same counting.
        constraint = request.make_constraint() if request.make_constraint is not None else None
        self._sequence = EngineSequence(request, max_length, None, constraint)
        self._constraint = constraint
        self._backends = backends
        self._client = client
        self._emit = emit
        self._begun = begun
        self._retried = retried

    async def run(self) -> None:
        """To the end. Whatever goes wrong is an output too."""
        try:
            while not await self._run_part():
                pass  # a thought has ended, and the form begins
        except GlimmerError as error:
            self._fail(error)
        except Exception as error:  # a mistake of ours: nobody may wait for ever
            _LOG.exception("a request to an engine has failed")
            failure = GenerationError("Something went wrong on the way to the engine.")
            failure.__cause__ = error
            self._fail(failure)

    async def _run_part(self) -> bool:
        """Up to the end of the answer, or of the thought before a form; whether it was the former.
        A backend that fails before its first token is replaced by another one."""
        tried: list[Backend] = []
        num_broken = 0
        failure: _Failed | None = None
        length = len(self._sequence.token_ids)
        while True:
            try:
                backend = self._backends.choose(tried)
            except EngineUnavailableError:
                if failure is not None:
                    raise failure.told from failure
                raise
            if failure is not None:
                self._retried()
            try:
                return await self._at(backend)
            except _Failed as error:
                if len(self._sequence.token_ids) > length:
                    raise GenerationError(
                        "The engine broke off in the middle of the answer."
                    ) from error
                failure = error
                tried.append(backend)
                num_broken += error.was_taken
                if num_broken == _MAX_BROKEN:
                    raise error.told from error

    async def _at(self, backend: Backend) -> bool:
        """At one backend, until it is lost."""
        backend.num_running += 1
        answer = asyncio.create_task(self._stream(backend))
        gone = asyncio.create_task(backend.wait_gone())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _Failed(no_engine())
            return answer.result()
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)
            backend.num_running -= 1

    async def _stream(self, backend: Backend) -> bool:
        served = backend.served
        if served is None:
            raise _Failed(no_engine(), was_taken=False)
        sequence = self._sequence
        body = completion_body(
            self._request,
            served.name,
            sequence.token_ids,
            sequence.max_length - len(sequence.token_ids),
            in_thought=self._is_in_thought,
        )
        try:
            response = await self._send(backend, body)
            try:
                if response.status_code != 200:
                    raise await _refusal(response, backend)
                self._begun()
                return await self._read(response)
            finally:
                await response.aclose()
        except StreamError as error:
            raise _told(error.code, str(error), backend) from error
        except httpx.HTTPError as error:
            was_taken = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            if was_taken:
                _LOG.warning("the engine %s broke off: %r", backend.name, error)
            else:
                backend.avoid(f"{error or type(error).__name__}")
            raise _Failed(no_engine(), was_taken=was_taken) from error

    async def _send(self, backend: Backend, body: dict[str, Any]) -> httpx.Response:
        """Up to the head of the response. A connection that was kept may just have been closed at
        the other end, which says nothing of the server: a second one is tried."""
        request = self._client.build_request(
            "POST", f"{backend.url}/v1/completions", json=body, headers=backend.headers
        )
        try:
            return await self._client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            return await self._client.send(request, stream=True)

    async def _read(self, response: httpx.Response) -> bool:
        num_top = max(logprobs_wanted(self._request.params), 0)
        # Behind a thought, the server finds that in its cache too: it has just made it itself.
        is_first = len(self._sequence.token_ids) == self._sequence.prompt_length
        last: StepOutput | None = None
        was_in_thought = self._is_in_thought
        chunks = read_chunks(read_lines(response.aiter_bytes()), num_top)
        async for chunk in chunks:
            for at, token_id in enumerate(chunk.token_ids):
                reason = self._sequence.append(token_id)
                ends_here = at == len(chunk.token_ids) - 1
                if reason is None and ends_here and chunk.finish_reason is not None:
                    reason = _reason(chunk.finish_reason)
                logprobs = chunk.logprobs[at] if chunk.logprobs is not None else None
                output = StepOutput(self._request.request_id, token_id, logprobs, reason)
                if reason is not None:
                    last = output
                    break
                self._emit(output)
                if was_in_thought and not self._is_in_thought:
                    return False
            if last is not None:
                if chunk.finish_reason is None:  # vLLM would go on: it is left
                    self._emit(last)
                else:
                    await self._end(last, chunks, is_first)
                return True
            if chunk.finish_reason is not None:
                raise GenerationError(
                    f"The engine ended the answer without a token: {chunk.finish_reason}."
                )
        raise _Failed(GenerationError("The engine broke off before the end of the answer."))

    async def _end(self, last: StepOutput, chunks: AsyncIterator[Chunk], is_first: bool) -> None:
        """What follows the end tells how much of the prompt was in the cache, if anything does. All
        of it is read, so that the connection serves for the next request."""
        is_told = False
        try:
            with contextlib.suppress(httpx.HTTPError, GenerationError, StreamError, TimeoutError):
                async with asyncio.timeout(_END_S):
                    async for chunk in chunks:
                        if is_first and chunk.num_cached_tokens is not None and not is_told:
                            is_told = True
                            self._emit(replace(last, num_cached_tokens=chunk.num_cached_tokens))
        finally:  # whatever happens now, the answer is whole
            if not is_told:
                self._emit(last)

    @property
    def _is_in_thought(self) -> bool:
        return self._constraint is not None and not self._constraint.has_begun

    def _fail(self, error: GlimmerError) -> None:
        self._emit(StepOutput(self._request.request_id, None, None, "error", error))


def _reason(told: str) -> FinishReason:
    if told not in _REASONS:
        raise GenerationError(f"The engine ended the answer: {told}.")
    return cast("FinishReason", _REASONS[told])


async def _refusal(response: httpx.Response, backend: Backend) -> Exception:
    """What another status than 200 means."""
    return _told(response.status_code, await _message(response), backend)


def _told(status: int, message: str, backend: Backend) -> Exception:
    if status in (400, 413, 422):
        return InvalidParameterError(f"The engine refuses this request: {message}")
    if status in (401, 403, 404):
        # Not the client's fault: its key or its model's name is wrong, or not there any more.
        backend.avoid(f"it refuses requests ({status}): {message}")
        return _Failed(no_engine(), was_taken=False)
    # The message may quote what a client wrote, which is in no log.
    _LOG.warning("the engine %s answers %d", backend.name, status)
    if status in (429, 503):
        return _Failed(no_engine(), was_taken=False)
    if status in (502, 504):  # of what stands before it
        return _Failed(no_engine())
    return _Failed(GenerationError("The engine has failed at this request."))


async def _message(response: httpx.Response) -> str:
    data = b""
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > _MAX_ERROR_BYTES:
            break
    try:
        body: Any = httpx.Response(200, content=data).json()
        error = body.get("error", body)
        return str(error["message"] if isinstance(error, dict) else error)[:1000]
    except (ValueError, LookupError, AttributeError, TypeError):
        return data.decode("utf-8", errors="replace")[:1000] or f"status {response.status_code}"
