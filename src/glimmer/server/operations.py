"""What those who run the server ask it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse

import glimmer
from glimmer.server.web import ServiceOf

router = APIRouter(tags=["Operation"])
_NOT_YET: dict[int | str, dict[str, Any]] = {503: {"description": "Not now."}}


@router.get("/health", responses=_NOT_YET)
async def health(service: ServiceOf) -> Response:
    """200 while the server lives and its first model is loaded."""
    if service.failure is not None:
        return JSONResponse({"status": "failed"}, 503)
    if not service.pool.is_ready:
        return JSONResponse({"status": "loading"}, 503, {"Retry-After": "1"})
    return JSONResponse({"status": "ok"})


@router.get("/ready", responses=_NOT_YET)
async def ready(service: ServiceOf) -> Response:
    """200 while a new request would be taken; for load balancers."""
    if service.is_draining:
        return JSONResponse({"status": "draining"}, 503, {"Retry-After": "5"})
    return await health(service)


@router.get("/version")
async def version() -> dict[str, str]:
    """The version of Glimmer."""
    return {"version": glimmer.__version__}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceOf) -> Response:
    """For Prometheus."""
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
