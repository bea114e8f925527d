"""What routes of all dialects need of a request and of its answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated

from fastapi import Depends, Request

from glimmer.server.errors import ApiError
from glimmer.server.service import Caller, Service
from glimmer.server.sse import EventStream

REQUEST_ID_HEADER = "x-request-id"


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


async def _caller(request: Request, service: ServiceOf) -> Caller:
    return Caller(endpoint=request.scope["route"].path)


CallerOf = Annotated[Caller, Depends(_caller)]


def request_id(request: Request) -> str:
    """That of the client, or a fresh one."""
    name: str = request.scope["state"]["request_id"]
    return name


def event_stream(
    service: Service,
    events: AsyncIterator[bytes],
    close: Callable[[], Awaitable[None]],
    headers: dict[str, str],
) -> EventStream:
    config = service.config
    return EventStream(
        events,
        close,
        keep_alive_s=config.keep_alive_s,
        stall_s=config.stall_s,
        headers=headers,
    )


def notes(ignored: Sequence[str], notes: Sequence[str] = ()) -> dict[str, str]:
    """Headers that tell what was not followed, or followed in another way."""
    headers = {}
    if ignored:
        headers["x-glimmer-ignored"] = _header_text(", ".join(ignored))
    if notes:
        headers["x-glimmer-notes"] = _header_text(" ".join(notes))
    return headers


def retry_headers(error: ApiError) -> dict[str, str]:
    if error.retry_after_s is None:
        return {}
    return {"Retry-After": str(max(1, round(error.retry_after_s)))}


def _header_text(text: str) -> str:
    """ASCII without control characters, and not endless."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in text)
    return printable[:500]
