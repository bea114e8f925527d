"""A request that the server makes to itself, for somebody who does not wait."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

from starlette.types import ASGIApp, Message

from glimmer.server.access import Caller
from glimmer.server.envelope import log_mistake


async def request_inside(
    app: ASGIApp, path: str, body: Any, caller: Caller
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of the answer that a client of ``caller`` would get by POST.

    All that a dialect checks and accounts for is checked and accounted for.
    """
    status, sent = 500, b""
    headers: dict[str, str] = {}
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()  # there is no connection that could close
        return messages.pop()

    async def send(message: Message) -> None:
        nonlocal status, sent, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            sent += message.get("body", b"")

    request_id = secrets.token_hex(16)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"host", b"inside")],
        "server": ("inside", 80),
        "client": None,
        "state": {"request_id": request_id, "headers": {}, "caller": caller},
    }
    try:
        await app(scope, receive, send)
    except Exception as error:
        log_mistake(error, f"request {request_id}")  # it is answered, with 500
    return status, json.loads(sent), headers
