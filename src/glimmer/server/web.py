"""What routes of all dialects need of a request and of its answer."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from glimmer.server.access import Caller
from glimmer.server.errors import ApiError
from glimmer.server.json_body import Gate
from glimmer.server.keys import Endpoint
from glimmer.server.service import Service
from glimmer.server.sse import EventStream

_BEARER = HTTPBearer(auto_error=False, description="id.secret, or a token signed with the secret")
_API_KEY = APIKeyHeader(name="x-api-key", auto_error=False, description="As Anthropic's clients")


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


class _Authentication(Gate):
    """Finds who asks, by any header that a dialect's clients send."""

    def __init__(self, scope: Endpoint) -> None:
        self._scope: Endpoint = scope

    async def __call__(
        self,
        request: Request,
        service: ServiceOf,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)] = None,
        api_key: Annotated[str | None, Security(_API_KEY)] = None,
    ) -> Caller:
        endpoint, state = request.scope["route"].path, request.scope["state"]
        # From the gate, or of a request that the server makes itself.
        known: Caller | None = state.get("caller")
        if known is not None:
            known = replace(known, endpoint=endpoint, scope=self._scope, headers=state["headers"])
            if known.key is not None:
                known.key.check(self._scope)
            return known
        # The platform's older SDK sends its token without a word before it.
        credential = bearer.credentials if bearer is not None else api_key
        if credential is None:
            credential = request.headers.get("authorization", "")
        return await service.access.caller(credential, endpoint, self._scope, state["headers"])

    async def open(self, request: Request) -> None:
        request.scope["state"]["caller"] = await self(
            request, await _service(request), await _BEARER(request), await _API_KEY(request)
        )


ChatCaller = Annotated[Caller, Depends(_Authentication("chat"))]
CompletionsCaller = Annotated[Caller, Depends(_Authentication("completions"))]
ResponsesCaller = Annotated[Caller, Depends(_Authentication("responses"))]
EmbeddingsCaller = Annotated[Caller, Depends(_Authentication("embeddings"))]
ModelsCaller = Annotated[Caller, Depends(_Authentication("models"))]
TokenizeCaller = Annotated[Caller, Depends(_Authentication("tokenize"))]
FilesCaller = Annotated[Caller, Depends(_Authentication("files"))]
BatchesCaller = Annotated[Caller, Depends(_Authentication("batches"))]
UsageCaller = Annotated[Caller, Depends(_Authentication("usage"))]


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
    return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}


def _header_text(text: str) -> str:
    """ASCII without control characters, and not endless."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in text)
    return printable[:500]
