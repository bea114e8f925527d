"""What vLLM streams back, read into tokens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from glimmer.engine import TokenLogprobs
from glimmer.errors import GenerationError

_PREFIX = "data:"
_ID = "token_id:"


class StreamError(Exception):
    """What the server tells in the place of tokens."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        """An HTTP status, which it was too late to send."""


@dataclass(frozen=True, slots=True)
class Chunk:
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    """One for each token, where they were asked for."""
    finish_reason: str | None
    num_cached_tokens: int | None
    """Told at the end, by a server that was told to tell it."""


async def read_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    r"""The lines of an event stream, which end with \n. JSON may hold other characters that end a
    line in plain text, such as U+2028: httpx's own ``aiter_lines`` would cut there."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", errors="replace")
    if rest:
        yield rest.decode("utf-8", errors="replace")


async def read_chunks(lines: AsyncIterator[str], num_top: int) -> AsyncIterator[Chunk]:
    """From the lines of an event stream, all of which are read. ``num_top`` likeliest tokens were
    asked for.

    Raises:
        StreamError: the server tells an error.
        GenerationError: it tells something that is not understood.
    """
    is_done = False
    async for line in lines:
        if is_done or not line.startswith(_PREFIX):
            continue  # blank lines between events, and comments that keep a connection alive
        data = line.removeprefix(_PREFIX).strip()
        if data == "[DONE]":
            is_done = True
            continue
        try:
            yield _read(json.loads(data), num_top)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise GenerationError(
                f"The engine sent what is no answer of vLLM's /v1/completions: {error!r:.200}. "
                "Glimmer is made for vLLM 0.32, which tells token_ids."
            ) from error


def _read(event: Mapping[str, Any], num_top: int) -> Chunk:
    if (error := event.get("error")) is not None:
        message = error.get("message") or error.get("type") or "it does not say why"
        raise StreamError(int(error.get("code", 500)), f"{message!s:.500}")
    usage = event.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    if not event["choices"]:
        return Chunk((), None, None, cached)
    (choice,) = event["choices"]
    token_ids = choice["token_ids"]
    if token_ids is None:
        raise ValueError("it has no token_ids")
    told = choice.get("logprobs")
    logprobs = None if told is None else _logprobs(told, num_top)
    if logprobs is not None and len(logprobs) != len(token_ids):
        raise ValueError(f"{len(token_ids)} tokens with {len(logprobs)} logprobs")
    return Chunk(tuple(map(int, token_ids)), logprobs, choice.get("finish_reason"), cached)


def _logprobs(told: Mapping[str, Any], num_top: int) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(float(logprob), _top(top, num_top))
        for logprob, top in zip(told["token_logprobs"], told["top_logprobs"], strict=True)
    )


def _top(told: Mapping[str, float], num_top: int) -> tuple[tuple[int, float], ...]:
    """vLLM adds the chosen token to the likeliest ones."""
    pairs = [(int(token.removeprefix(_ID)), float(value)) for token, value in told.items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:num_top])
