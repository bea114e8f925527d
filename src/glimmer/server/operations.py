"""What those who run the server ask it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, cast

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse

import glimmer
from glimmer.server.ledger import Grouping
from glimmer.server.openai.replies import documented
from glimmer.server.replies import Reply
from glimmer.server.web import ServiceOf, UsageCaller

router = APIRouter(tags=["Operation"])


class UsageReply(Reply):
    object: str
    data: list[dict[str, Any]]


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
    llm = service.pool.loaded().get(service.pool.default_name)
    if llm is not None and (backends := llm.stats.backends) and not any(b.is_up for b in backends):
        return JSONResponse({"status": "no backend"}, 503, {"Retry-After": "5"})
    return await health(service)


@router.get("/version")
async def version() -> dict[str, str]:
    """The version of Glimmer."""
    return {"version": glimmer.__version__}


@router.get("/usage", responses=documented(UsageReply))
async def usage(
    service: ServiceOf,
    caller: UsageCaller,
    by: str = "day",
    since: datetime | None = None,
    until: datetime | None = None,
) -> dict[str, Any]:
    """What the key's project has used, by any of day, key, model and project, with commas between.
    A key of the scope "admin" sees all projects."""
    groups = [name.strip() for name in by.split(",") if name.strip()]
    since, until = (
        time if time is None or time.tzinfo is not None else time.replace(tzinfo=UTC)
        for time in (since, until)
    )
    rows = await service.access.usage(caller, cast("list[Grouping]", groups), since, until)
    return {"object": "list", "data": [asdict(row) for row in rows]}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceOf) -> Response:
    """For Prometheus."""
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
