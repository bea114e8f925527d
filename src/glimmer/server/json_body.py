"""Reads JSON bodies so that nothing behind it meets what is no JSON for us."""

from __future__ import annotations

import asyncio
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from glimmer.server.errors import ApiError

MAX_DEPTH = 64
"""Lists and objects in each other. The deepest schema that makes sense has a dozen."""
_LARGE_BYTES = 1 << 18
"""Others do not wait while so much is read."""


class Gate(ABC):
    """A dependency that is asked before the body is read: that of a stranger is not taken in."""

    @abstractmethod
    async def open(self, request: Request) -> None:
        """Raises ApiError."""


class JsonRoute(APIRoute):
    """A route whose body is read by ``parse_json``, behind its gates."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        asked: list[object] = [d.call for d in self.dependant.dependencies]
        gates = [call for call in asked if isinstance(call, Gate)]

        async def handle(request: Request) -> Response:
            for gate in gates:
                await gate.open(request)
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        if len(body) < _LARGE_BYTES:
            return parse_json(body)
        return await asyncio.to_thread(parse_json, body)


def parse_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        ApiError: no UTF-8, no JSON, halves of surrogate pairs, NaN or infinity, or lists and
            objects deeper than MAX_DEPTH.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_parse_float)
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise ApiError("invalid", f"The body has more than {MAX_DEPTH} levels of nesting.")
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ApiError(
            "invalid", f"The body must be UTF-8, but the byte at {error.start} is not."
        ) from error
    except UnicodeEncodeError as error:
        raise ApiError(
            "invalid", "The body holds half of a surrogate pair (\\ud800 to \\udfff) alone."
        ) from error
    except json.JSONDecodeError as error:
        raise ApiError(
            "invalid", f"The body is no JSON: {error.msg} at character {error.pos}."
        ) from error
    except RecursionError as error:
        raise ApiError(
            "invalid", f"The body has more than {MAX_DEPTH} levels of nesting."
        ) from error
    except ValueError as error:  # a number of more digits than Python reads
        raise ApiError("invalid", "The body holds a number that is too long.") from error
    return value


def _parse_float(text: str) -> float:
    """JSON has 1e999, and Python makes infinity of it, which is no JSON again."""
    value = float(text)
    if math.isinf(value):
        raise ApiError("invalid", f"The body holds a number that is too large: {text[:40]}.")
    return value


def _refuse_constant(name: str) -> None:
    raise ApiError("invalid", f"The body is no JSON: {name} is no number there.")


def _depth(value: Any) -> int:
    """Without recursion: depth is what is in doubt."""
    level, depth = [value], 0
    while level:
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        depth += 1
    return depth - 1
