"""The server's log: a line a request, as text or JSON, and never what a client has written."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal

_FIELDS = ("request_id", "method", "endpoint", "status", "duration_s")


def configure(log_format: Literal["text", "json"], level: str) -> None:
    """Send what the server and uvicorn say to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    for name in ("glimmer.server", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    if level == "info":
        # What uvicorn tells of itself is of use only to those who look for a fault.
        logging.getLogger("uvicorn").setLevel("WARNING")
    # Its access log holds addresses with everything that stands behind a question mark.
    logging.getLogger("uvicorn.access").disabled = True


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(levelname)-7s %(asctime)s %(message)s", "%H:%M:%S")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        told |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)
