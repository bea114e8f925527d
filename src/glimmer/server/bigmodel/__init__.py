"""The dialect of the hosted GLM models: BigModel and Z.ai, version 4."""

from fastapi import APIRouter

from glimmer.server.bigmodel import chat
from glimmer.server.bigmodel.errors import render

PREFIX = "/api/paas/v4"
__all__ = ["PREFIX", "render", "routers"]


def routers() -> tuple[APIRouter, ...]:
    together = APIRouter(prefix=PREFIX, tags=["BigModel"])
    for part in (chat,):
        together.include_router(part.router)
    return (together,)
