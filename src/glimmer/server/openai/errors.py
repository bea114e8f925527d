"""Refusals in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glimmer.server.errors import STATUS, ApiError, ErrorKind

# Kind -> (type, code), https://platform.openai.com/docs/guides/error-codes
_NAMES: Mapping[ErrorKind, tuple[str, str | None]] = {
    "context_length": ("invalid_request_error", "context_length_exceeded"),
    "no_key": ("invalid_request_error", "missing_api_key"),
    "bad_key": ("invalid_request_error", "invalid_api_key"),
    "wrong_secret": ("invalid_request_error", "invalid_api_key"),
    "expired_key": ("invalid_request_error", "expired_api_key"),
    "permission": ("permission_error", "permission_denied"),
    "model_not_found": ("invalid_request_error", "model_not_found"),
    "concurrency": ("rate_limit_error", "concurrency_limit_exceeded"),
    "rate": ("rate_limit_error", "rate_limit_exceeded"),
    "daily": ("rate_limit_error", "daily_limit_exceeded"),
    "queue_full": ("rate_limit_error", "queue_full"),
    "loading": ("server_error", "model_loading"),
    "draining": ("server_error", "server_stopping"),
    "memory": ("server_error", "model_unavailable"),
    "unavailable": ("server_error", "model_unavailable"),
    "internal": ("server_error", None),
}


def render(error: ApiError) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    kind, code = _NAMES.get(error.kind, ("invalid_request_error", None))
    body = {"message": error.message, "type": kind, "param": error.param, "code": code}
    return STATUS[error.kind], {"error": body}
