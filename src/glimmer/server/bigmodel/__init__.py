"""The dialect of the hosted GLM models: BigModel and Z.ai, version 4."""

from fastapi import APIRouter

from glimmer.server.bigmodel import chat, tasks
from glimmer.server.bigmodel.chat import PREFIX
from glimmer.server.bigmodel.errors import render
from glimmer.server.bigmodel.replies import documented
from glimmer.server.offline.routes import make_router

__all__ = ["PREFIX", "render", "routers"]


def routers() -> tuple[APIRouter, ...]:
    together = APIRouter(prefix=PREFIX, tags=["BigModel"])
    for part in (chat, tasks):
        together.include_router(part.router)
    return together, make_router(PREFIX, "BigModel", documented)
