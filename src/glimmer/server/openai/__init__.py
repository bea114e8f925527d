"""OpenAI's dialect: chat completions, completions, infilling, responses, embeddings, models."""

from fastapi import APIRouter

from glimmer.server.offline.routes import make_router
from glimmer.server.openai import chat, completions, infill, models, responses
from glimmer.server.openai.errors import render
from glimmer.server.openai.replies import documented

__all__ = ["render", "routers"]


def routers() -> tuple[APIRouter, ...]:
    offline = make_router("/v1", "OpenAI", documented)
    return (
        offline,
        chat.router,
        completions.router,
        infill.router,
        responses.router,
        models.router,
    )
