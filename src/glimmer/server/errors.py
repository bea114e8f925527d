"""What a client is told when it does not get what it asked for. Knows no dialect: each renders the
kind in its own body and status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from glimmer.errors import GlimmerError

ErrorKind = Literal[
    "invalid",  # a value is not allowed, or the body cannot be read
    "missing",  # a required value is not there
    "conflict",  # two values exclude each other
    "unsupported",  # understood, but not offered here
    "context_length",  # the prompt, or prompt and answer, is too long
    "too_large",  # the body is
    "timeout",  # the body has not come
    "no_key",
    "bad_key",  # malformed, unknown or revoked
    "wrong_secret",  # of a key that there is, or a wrong signature
    "expired_key",
    "permission",  # this key may not use that model or endpoint
    "model_not_found",
    "not_found",
    "method",
    "duplicate_request",  # a request of this id is under way
    "concurrency",  # too many requests of one key at once
    "rate",  # too many requests or tokens per minute
    "daily",  # too many requests or tokens per day
    "queue_full",  # too many requests wait already
    "loading",  # the server or the model is not ready yet
    "draining",  # the server is about to stop
    "memory",  # the model does not fit beside those that are in use
    "unavailable",  # no engine that runs the model elsewhere answers
    "client_gone",  # nobody is there to be told
    "internal",
]


STATUS: Mapping[ErrorKind, int] = {
    "invalid": 400,
    "missing": 400,
    "conflict": 400,
    "unsupported": 400,
    "context_length": 400,
    "too_large": 413,
    "timeout": 408,
    "no_key": 401,
    "bad_key": 401,
    "wrong_secret": 401,
    "expired_key": 401,
    "permission": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method": 405,
    "duplicate_request": 400,
    "concurrency": 429,
    "rate": 429,
    "daily": 429,
    "queue_full": 429,
    "loading": 503,
    "draining": 503,
    "memory": 503,
    "unavailable": 503,
    "client_gone": 499,  # as others record it
    "internal": 500,
}
"""The HTTP status of each kind of refusal, where a dialect has no other."""


class ApiError(GlimmerError):
    """A refusal for a client. The message goes to it as it is: no key, path or text of others."""

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.message = message
        self.param = param
        """The field of the request that is at fault."""
        self.retry_after_s = retry_after_s
        """When to try again; None where that would not help."""
