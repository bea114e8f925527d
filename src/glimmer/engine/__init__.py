"""Requests in, tokens out. Knows no text."""

from glimmer.engine.engine import Engine, StepOutput, TokenLogprobs
from glimmer.engine.request import Request
from glimmer.engine.sampling_params import SamplingParams
from glimmer.engine.sequence import FinishReason

__all__ = ["Engine", "FinishReason", "Request", "SamplingParams", "StepOutput", "TokenLogprobs"]
