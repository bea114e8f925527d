"""What the engine is asked for. Token ids only: the engine knows no text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from glimmer.architecture import TextLayout
from glimmer.engine.adapter_weights import AdapterWeights
from glimmer.engine.constraint import TokenConstraint
from glimmer.engine.loop_guard import LoopLimits
from glimmer.engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Request:
    request_id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int]
    """Ids that end the answer and belong to it; empty with ``ignore_eos``."""
    seed: int
    """The request's own seed, or a fresh one: what the random numbers are made from."""
    loop_limits: LoopLimits | None = None
    """When an answer that runs in a circle is ended; None for never."""
    priority: int = 0
    """Each step is worth 64 places in the queue; lower is sooner."""
    fork_of: int | None = None
    """An earlier request with the same prompt, whose blocks serve for this one as well."""
    make_constraint: Callable[[], TokenConstraint] | None = None
    """Makes what tells the tokens that may come next."""
    layout: TextLayout | None = None
    """Where the prompt's tokens stand, in a network with blanks; None for where the network itself
    finds them to stand."""
    adapter: AdapterWeights | None = None
