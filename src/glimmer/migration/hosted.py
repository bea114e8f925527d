"""What the hosted platform offers: its models, and which release here is nearest to each.

Read from the platform's reference pages (docs.bigmodel.cn and docs.z.ai: chat completions,
embeddings, the models' own pages and the price list), as they stood in 2026. The platform adds and
retires models without asking us, so a name that is missing here is said to be unknown, not to be
wrong. Which model is nearest is our judgement: another model gives other answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_K = 1024


@dataclass(frozen=True, slots=True)
class HostedModel:
    name: str
    context: int | None = None
    """In tokens; None where no page read says it. "128K" is taken as 128 * 1024, so that a doubt
    is in the request's favour."""
    max_output: int | None = None
    local: str | None = None
    """The nearest release that runs here."""
    kind: Literal["text", "vision", "embedding", "other"] = "text"
    is_listed: bool = True
    """Whether the chat reference still lists it; older ones have a page or a price alone."""


_AIR = "glm-4.5-air"
_SMALL = "glm-4-9b-chat"

HOSTED_MODELS = (
    HostedModel("glm-5.2", 1024 * _K, 128 * _K, _AIR),
    HostedModel("glm-5.1", 200 * _K, 128 * _K, _AIR),
    HostedModel("glm-5-turbo", 200 * _K, 128 * _K, _AIR),
    HostedModel("glm-5", 200 * _K, 128 * _K, _AIR),
    HostedModel("glm-4.7", 200 * _K, 128 * _K, _AIR),
    HostedModel("glm-4.7-flash", 200 * _K, 128 * _K, "glm-4-32b-0414"),
    HostedModel("glm-4.7-flashx", 200 * _K, 128 * _K, "glm-4-32b-0414"),
    HostedModel("glm-4.6", 200 * _K, 128 * _K, "glm-4.5"),
    HostedModel("glm-4.5", 128 * _K, 96 * _K, "glm-4.5"),
    HostedModel("glm-4.5-x", 128 * _K, 96 * _K, "glm-4.5"),
    HostedModel("glm-4.5-air", 128 * _K, 96 * _K, _AIR),
    HostedModel("glm-4.5-airx", 128 * _K, 96 * _K, _AIR),
    HostedModel("glm-4.5-flash", 128 * _K, 96 * _K, _AIR),
    HostedModel("glm-4-32b-0414-128k", 128 * _K, 16 * _K, "glm-4-32b-0414"),
    HostedModel("glm-4-flash-250414", 128 * _K, None, "glm-4-9b-0414"),
    HostedModel("glm-4-flashx-250414", 128 * _K, None, "glm-4-9b-0414"),
    HostedModel("glm-4-plus", 128 * _K, None, "glm-4-32b-0414", is_listed=False),
    HostedModel("glm-4-air-250414", 128 * _K, None, "glm-4-32b-0414", is_listed=False),
    HostedModel("glm-4-airx", 8 * _K, None, "glm-4-32b-0414", is_listed=False),
    HostedModel("glm-4-long", 1024 * _K, None, "glm-4-9b-chat-1m", is_listed=False),
    HostedModel("glm-z1-air", 128 * _K, None, "glm-z1-32b-0414", is_listed=False),
    HostedModel("glm-z1-airx", 32 * _K, None, "glm-z1-32b-0414", is_listed=False),
    HostedModel("glm-z1-flash", 128 * _K, None, "glm-z1-9b-0414", is_listed=False),
    HostedModel("glm-z1-flashx", 128 * _K, None, "glm-z1-9b-0414", is_listed=False),
    # These names are from memory: no page that was read has them any more.
    HostedModel("glm-4", None, None, _SMALL, is_listed=False),
    HostedModel("glm-4-0520", None, None, _SMALL, is_listed=False),
    HostedModel("glm-4-air", None, None, _SMALL, is_listed=False),
    HostedModel("glm-4-flash", None, None, _SMALL, is_listed=False),
    HostedModel("glm-4-flashx", None, None, _SMALL, is_listed=False),
    HostedModel("glm-3-turbo", None, None, "chatglm3-6b", is_listed=False),
    HostedModel("chatglm_turbo", None, None, "chatglm3-6b", is_listed=False),
    HostedModel("glm-5v-turbo", None, 128 * _K, kind="vision"),
    HostedModel("glm-4.6v", None, 32 * _K, kind="vision"),
    HostedModel("glm-4.6v-flash", None, 32 * _K, kind="vision"),
    HostedModel("glm-4.6v-flashx", None, 32 * _K, kind="vision"),
    HostedModel("glm-4.5v", None, 16 * _K, kind="vision"),
    HostedModel("glm-4.1v-thinking-flash", None, 16 * _K, kind="vision"),
    HostedModel("glm-4.1v-thinking-flashx", None, 16 * _K, kind="vision"),
    HostedModel("glm-4v-flash", kind="vision"),
    HostedModel("glm-4v-plus-0111", kind="vision", is_listed=False),
    HostedModel("glm-4v", kind="vision", is_listed=False),
    HostedModel("glm-4-voice", None, 4 * _K, kind="other"),
    HostedModel("charglm-4", None, 4 * _K, kind="other"),
    HostedModel("emohaa", None, 4 * _K, kind="other"),
    HostedModel("embedding-3", 3072, kind="embedding"),
    HostedModel("embedding-2", 512, kind="embedding"),
)
OWN_NAMES = (
    *("glm-", "chatglm_", "charglm-", "codegeex-", "cogview-", "cogvideox-", "vidu", "autoglm-"),
    *("emohaa", "embedding-", "rerank"),
)
"""How the platform's names begin: such a model may be its own although it is not listed here."""

_BY_NAME = {model.name: model for model in HOSTED_MODELS}

MAX_OUTPUT = 128 * _K
"""The most that ``max_tokens`` may be for any model."""

_NEAREST: tuple[tuple[str, str | None], ...] = (
    # A release's name begins with ... the nearest hosted model; the first that fits counts.
    ("demo", "glm-4.7-flash"),
    ("glm-4-9b-chat-1m", "glm-5.2"),
    ("glm-4-9b-chat", "glm-4-flash-250414"),
    ("glm-4-9b-0414", "glm-4-flash-250414"),
    ("glm-4-32b-0414", "glm-4-32b-0414-128k"),
    ("glm-z1-", "glm-4.5-air"),
    ("chatglm-", "glm-4-flash-250414"),
    ("chatglm2-", "glm-4-flash-250414"),
    ("chatglm3-", "glm-4-flash-250414"),
)


def find_model(name: str) -> HostedModel | None:
    """By name; case does not matter."""
    return _BY_NAME.get(name.lower())


def hosted_for(release: str) -> str | None:
    """The hosted model nearest to a release; None for a base model: the platform has none."""
    if release in _BY_NAME:
        return release
    if "-base" in release or release in ("glm-4-9b", "glm-4-9b-hf"):
        return None
    return next((model for prefix, model in _NEAREST if release.startswith(prefix)), None)
