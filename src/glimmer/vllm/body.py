"""A request as vLLM's ``/v1/completions`` takes it.

Every value of SamplingParams has a counterpart there, in the same order of operations, or is seen
to here: stop strings by whoever reads the tokens, ``n`` and ``best_of`` as requests of their own,
the loop guard and the end of a form as tokens arrive. ``speculation`` is up to vLLM's own settings.
Fields: CompletionRequest in vllm/entrypoints/openai/completion/protocol.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glimmer.constraints import to_lark
from glimmer.engine import Request
from glimmer.engine.batch import logprobs_wanted

_MAX_SEED = 2**63 - 1
_BANNED = -100.0
"""A bias that no logit outweighs: the most that vLLM takes."""


def completion_body(
    request: Request,
    model: str,
    token_ids: Sequence[int],
    max_tokens: int,
    *,
    in_thought: bool,
) -> dict[str, Any]:
    """``token_ids`` is the prompt and, where an answer goes on, what there is of it; ``max_tokens``
    counts those that may follow. ``in_thought`` asks for a thought before the form: any text, which
    must not end the answer."""
    params = request.params
    stop_ids = sorted(request.stop_token_ids)
    biases = {str(token): bias for token, bias in params.logit_bias.items()}
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(token_ids),
        "max_tokens": max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        # What ends an answer is told here, whatever the server's own files say.
        "ignore_eos": True,
        "stop_token_ids": [] if in_thought else stop_ids,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if in_thought:
        biases |= dict.fromkeys(map(str, stop_ids), _BANNED)
    elif params.constraint is not None:
        # By its first line, llguidance reads the grammar, the library that it is written for.
        body["structured_outputs"] = {"grammar": "%llguidance {}\n" + to_lark(params.constraint)}
    if biases:
        body["logit_bias"] = biases
    if params.seed is not None:
        body["seed"] = request.seed & _MAX_SEED
    if (wanted := logprobs_wanted(params)) >= 0:
        body["logprobs"] = wanted
    if request.priority:
        body["priority"] = request.priority
    return body
