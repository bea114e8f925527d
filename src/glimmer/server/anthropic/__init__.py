"""Anthropic's dialect: messages. Also where the platform keeps it: /api/anthropic."""

from fastapi import APIRouter

from glimmer.server.anthropic import messages
from glimmer.server.anthropic.errors import render

_PLATFORM = "/api/anthropic"
PREFIXES = ("/v1/messages", _PLATFORM)
__all__ = ["PREFIXES", "render", "routers"]


def routers() -> tuple[APIRouter, ...]:
    there = APIRouter(prefix=_PLATFORM)
    there.include_router(messages.router)
    return messages.router, there
