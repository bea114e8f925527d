"""Refusals in Anthropic's form, https://docs.anthropic.com/en/api/errors"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glimmer.server.errors import STATUS, ApiError, ErrorKind

_TYPES: Mapping[ErrorKind, str] = {
    "too_large": "request_too_large",
    "timeout": "timeout_error",
    "no_key": "authentication_error",
    "bad_key": "authentication_error",
    "wrong_secret": "authentication_error",
    "expired_key": "authentication_error",
    "permission": "permission_error",
    "model_not_found": "not_found_error",
    "not_found": "not_found_error",
    "concurrency": "rate_limit_error",
    "rate": "rate_limit_error",
    "daily": "rate_limit_error",
    "queue_full": "overloaded_error",
    "loading": "overloaded_error",
    "draining": "overloaded_error",
    "memory": "overloaded_error",
    "unavailable": "overloaded_error",
    "internal": "api_error",
}
_OVERLOADED = 529
"""A status of Anthropic's own: the server's state is the reason, not this client's limits."""


def render(error: ApiError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    kind = _TYPES.get(error.kind, "invalid_request_error")
    status = _OVERLOADED if kind == "overloaded_error" else STATUS[error.kind]
    details = {"type": kind, "message": error.message}
    return status, {"type": "error", "error": details, "request_id": request_id}
