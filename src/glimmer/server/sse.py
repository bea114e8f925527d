"""Server-sent events: a response that ends with its client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glimmer.server.errors import ApiError

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event; its data is JSON on one line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name is not None else ""
    return f"{head}data: {text}\n\n".encode()


class EventStream(Response):
    """Sends events as they come and a comment where none has come for ``keep_alive_s``.

    When the client goes away, or has taken nothing for ``stall_s``, no more are made. ``close`` is
    called in the end, also where nothing was ever sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        *,
        keep_alive_s: float,
        stall_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", **(headers or {})})
        # A proxy that collects what it passes on would defeat the purpose.
        self.headers["X-Accel-Buffering"] = "no"
        if "content-length" in self.headers:
            del self.headers["content-length"]
        self._events = events
        self._close = close
        self._keep_alive_s = keep_alive_s
        self._stall_s = stall_s
        self._sending_since: float | None = None
        self._last_sent = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.ensure_future(self._pump(send))
        watch = asyncio.ensure_future(_disconnect(receive))
        try:
            while not pump.done() and not watch.done():
                wait = min(self._keep_alive_s, self._stall_s)
                await asyncio.wait({pump, watch}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                now = time.monotonic()
                if self._sending_since is not None:
                    if now - self._sending_since > self._stall_s:
                        break  # a client that reads nothing holds no seat
                elif not pump.done() and now - self._last_sent >= self._keep_alive_s:
                    # What was sent before may still lie there, and nobody take it.
                    await asyncio.wait_for(self._send(send, _KEEP_ALIVE), self._stall_s)
        except TimeoutError:
            pass
        finally:
            for task in (pump, watch):
                task.cancel()
            await asyncio.gather(pump, watch, return_exceptions=True)
            await self._close()
        if not pump.cancelled() and (error := pump.exception()) is not None:
            raise error

    async def _pump(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async for chunk in self._events:
            await self._send(send, chunk)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, chunk: bytes) -> None:
        self._sending_since = time.monotonic()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sending_since, self._last_sent = None, time.monotonic()


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away.

    Raises: what ``work`` raises; ClientGoneError.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class ClientGoneError(ApiError):
    """Nobody is there to be told."""

    def __init__(self) -> None:
        super().__init__("client_gone", "The client has closed the connection.")


async def _disconnect(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
