"""OpenAI's dialect: chat completions, completions, responses, embeddings, models."""

from fastapi import APIRouter

from glimmer.server.openai import chat, completions, models
from glimmer.server.openai.errors import render

__all__ = ["render", "routers"]


def routers() -> tuple[APIRouter, ...]:
    return chat.router, completions.router, models.router
