"""Around every request: its id, the limits of its body, its line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import traceback
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glimmer.server.errors import ApiError

_LOG = logging.getLogger("glimmer.server")
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


class Envelope:
    """An ASGI application around another."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: Callable[[str], int],
        stall_s: float,
        responded: Callable[[str, int], None],
    ) -> None:
        """``max_body_bytes`` tells the limit by path; ``responded`` hears route and status."""
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._stall_s = stall_s
        self._responded = responded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = _request_id(scope)
        headers: dict[str, str] = {}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "headers": headers}
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    *((name.encode(), value.encode()) for name, value in headers.items()),
                ]
            await send(message)

        limited = _LimitedBody(receive, self._max_body_bytes(scope["path"]), self._stall_s)
        try:
            await self._app(scope, limited, send_and_note)
        except Exception as error:
            log_mistake(error, f"request {request_id}")  # the client has its answer
        route = scope.get("route")
        endpoint = getattr(route, "path", "none")
        self._responded(endpoint, status)
        _LOG.info(
            "%s %s %d in %.3f s",
            scope["method"],
            endpoint,
            status,
            time.perf_counter() - start,
            extra={
                "request_id": request_id,
                "method": scope["method"],
                "endpoint": endpoint,
                "status": status,
                "duration_s": round(time.perf_counter() - start, 4),
            },
        )


def log_mistake(error: Exception, where: str) -> None:
    """A message may quote what a client sent; a place does not."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    _LOG.error("%s in %s\n%s", type(error).__name__, where, frames)


class _LimitedBody:
    """Receives a body up to a length, and not for ever."""

    def __init__(self, receive: Receive, max_bytes: int, stall_s: float) -> None:
        self._receive = receive
        self._left = self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._is_complete = False

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()  # that the client has gone
        try:
            message = await asyncio.wait_for(self._receive(), self._stall_s)
        except TimeoutError:
            raise ApiError(
                "timeout", f"Nothing of the body has come for {self._stall_s:g} seconds."
            ) from None
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise ApiError(
                "too_large",
                f"The body may have {self._max_bytes} bytes, but it has more.",
            )
        self._is_complete = not message.get("more_body", False)
        return message


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and (match := _ID.fullmatch(value.decode("latin-1"))):
            return match[0]
    return secrets.token_hex(16)
