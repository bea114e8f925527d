"""The application: routes, and who renders a refusal."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import glimmer
from glimmer.errors import GlimmerError
from glimmer.server import anthropic, bigmodel, jobs, openai, operations
from glimmer.server.envelope import Envelope
from glimmer.server.errors import ApiError, ErrorKind
from glimmer.server.offline.routes import MAX_FILE_BYTES
from glimmer.server.service import Service
from glimmer.server.web import request_id, retry_headers

_ABOUT = (
    "The ChatGLM lineage on your own machine, in the dialects of OpenAI, BigModel and Anthropic."
)
_TYPE = re.compile(r"(constrained-)?(str|int)|list\[.*\]")
"""How a place names the one of several types that a value was read as."""
_KINDS: dict[int, ErrorKind] = {404: "not_found", 405: "method"}


def create_app(service: Service) -> ASGIApp:
    """The server as an ASGI application; its lifespan loads the models and lets them go."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(service.start(app))
        yield
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await service.aclose()

    # Its pages fetch no script from elsewhere.
    app = FastAPIOffline(
        title="Glimmer",
        description=_ABOUT,
        version=glimmer.__version__,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.service = service
    for router in (
        *openai.routers(),
        *bigmodel.routers(),
        *anthropic.routers(),
        operations.router,
    ):
        app.include_router(router)
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(GlimmerError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(Exception, _admit_mistake)
    if service.config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.config.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    max_bytes = int(service.config.max_body_mb * 2**20)
    # A file lies within a form, which adds a little.
    max_file_bytes = max(MAX_FILE_BYTES + (1 << 20), max_bytes)
    return Envelope(
        app,
        max_body_bytes=lambda path: max_file_bytes if path.endswith("/files") else max_bytes,
        stall_s=service.config.stall_s,
        responded=service.metrics.responded,
    )


def refuse(request: Request, error: ApiError) -> Response:
    """In the dialect of the path that was asked."""
    path = request.url.path
    if path.startswith(anthropic.PREFIXES):
        name = request_id(request)
        status, body = anthropic.render(error, name)
        return JSONResponse(body, status, {**retry_headers(error), "request-id": name})
    render = bigmodel.render if path.startswith(bigmodel.PREFIX) else openai.render
    status, body = render(error)
    return JSONResponse(body, status, retry_headers(error))


async def _refuse(request: Request, error: Exception) -> Response:
    return refuse(request, jobs.refusal(cast("GlimmerError", error)))


async def _refuse_body(request: Request, error: Exception) -> Response:
    """What was sent is not repeated."""
    errors = cast("RequestValidationError", error).errors()
    # Of a field that takes several types, what is wrong within the one that was meant.
    field = errors[0]["loc"][:2]
    meant = (e for e in errors if e["loc"][:2] == field and not e["type"].endswith("_type"))
    return refuse(request, _from_validation(next(meant, errors[0])))


def _from_validation(first: Any) -> ApiError:
    # A place may be a key that the client made up, of any length.
    parts = (f"{part!s:.80}" for part in first["loc"] if part != "body")
    where = ".".join(part for part in parts if not _TYPE.fullmatch(part))
    if first["type"] == "missing" and not where:
        return ApiError("missing", "The body is missing.")
    if first["type"] == "missing":
        return ApiError("missing", f"The field {where} is missing.", param=where)
    if not where:
        return ApiError("invalid", f"The body is not what it should be: {first['msg']}.")
    return ApiError("invalid", f"The field {where} is wrong: {first['msg']}.", param=where)


async def _admit_mistake(request: Request, error: Exception) -> Response:
    return refuse(
        request, ApiError("internal", "Something went wrong in the server; its log says more.")
    )


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):  # while the body was read
        return refuse(request, error.__cause__)
    kind = _KINDS.get(error.status_code, "invalid")
    phrase = HTTPStatus(error.status_code).phrase
    what = {
        "not_found": "There is nothing at this address.",
        "method": "This address takes another method.",
    }.get(kind, f"{phrase}.")
    return refuse(request, ApiError(kind, what))
