"""Requests in, tokens out. Knows no text."""

from glimmer.engine.adapter_weights import AdapterWeights
from glimmer.engine.constraint import Constraint, TokenConstraint
from glimmer.engine.engine import (
    BackendStats,
    Engine,
    EngineStats,
    StepOutput,
    TokenLogprobs,
    check_request,
)
from glimmer.engine.loop_guard import LoopLimits
from glimmer.engine.request import Request
from glimmer.engine.sampling_params import SamplingParams
from glimmer.engine.sequence import FinishReason, Sequence
from glimmer.engine.token_engine import TokenEngine

__all__ = [
    "AdapterWeights",
    "BackendStats",
    "Constraint",
    "Engine",
    "EngineStats",
    "FinishReason",
    "LoopLimits",
    "Request",
    "SamplingParams",
    "Sequence",
    "StepOutput",
    "TokenConstraint",
    "TokenEngine",
    "TokenLogprobs",
    "check_request",
]
