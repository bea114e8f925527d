"""Glimmer: the ChatGLM lineage on your own machine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glimmer.async_llm import AsyncLLM
    from glimmer.chat import Message
    from glimmer.engine import Constraint, LoopLimits, SamplingParams
    from glimmer.errors import GlimmerError
    from glimmer.inspection import ModelSummary, inspect
    from glimmer.llm import LLM
    from glimmer.loader import LoadedModel, load
    from glimmer.outputs import RequestOutput

# A name's module is imported when the name is first used: `import glimmer` itself costs nothing.
_MODULES = {
    "AsyncLLM": "glimmer.async_llm",
    "Constraint": "glimmer.engine",
    "GlimmerError": "glimmer.errors",
    "LLM": "glimmer.llm",
    "LoadedModel": "glimmer.loader",
    "LoopLimits": "glimmer.engine",
    "Message": "glimmer.chat",
    "ModelSummary": "glimmer.inspection",
    "RequestOutput": "glimmer.outputs",
    "SamplingParams": "glimmer.engine",
    "inspect": "glimmer.inspection",
    "load": "glimmer.loader",
}
__all__ = [
    "LLM",
    "AsyncLLM",
    "Constraint",
    "GlimmerError",
    "LoadedModel",
    "LoopLimits",
    "Message",
    "ModelSummary",
    "RequestOutput",
    "SamplingParams",
    "inspect",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("glimmer-lm")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
