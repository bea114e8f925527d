"""Refusals with the codes of the BigModel platform, https://docs.bigmodel.cn/cn/api/api-code"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glimmer.server.errors import STATUS, ApiError, ErrorKind

# 1113 (an account in arrears) and 1301 (content that is not allowed) have no cause here.
_CODES: Mapping[ErrorKind, str] = {
    "invalid": "1214",
    "missing": "1213",
    "conflict": "1215",
    "unsupported": "1210",
    "context_length": "1261",
    "too_large": "1210",
    "timeout": "1210",
    "no_key": "1001",
    "bad_key": "1002",
    "wrong_secret": "1004",
    "expired_key": "1003",
    "permission": "1220",
    "model_not_found": "1211",
    "not_found": "1222",
    "method": "1212",
    "duplicate_request": "1231",
    "concurrency": "1302",
    "rate": "1303",
    "daily": "1304",
    "queue_full": "1305",
    "loading": "1305",
    "draining": "1305",
    "memory": "1305",
    "unavailable": "1305",
    "client_gone": "1200",
    "internal": "1200",
}
# The platform's SDKs choose their exception by these.
_STATUS: Mapping[ErrorKind, int] = {**STATUS, "permission": 400, "model_not_found": 400}


def render(error: ApiError) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    return _STATUS[error.kind], {"error": {"code": _CODES[error.kind], "message": error.message}}
