"""Requests in, tokens out. Knows no text."""

from glimmer.engine.adapter_weights import AdapterWeights
from glimmer.engine.constraint import Constraint, TokenConstraint
from glimmer.engine.engine import Engine, EngineStats, StepOutput, TokenLogprobs
from glimmer.engine.loop_guard import LoopLimits
from glimmer.engine.request import Request
from glimmer.engine.sampling_params import SamplingParams
from glimmer.engine.sequence import FinishReason

__all__ = [
    "AdapterWeights",
    "Constraint",
    "Engine",
    "EngineStats",
    "FinishReason",
    "LoopLimits",
    "Request",
    "SamplingParams",
    "StepOutput",
    "TokenConstraint",
    "TokenLogprobs",
]
