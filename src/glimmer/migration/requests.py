"""Reads recorded requests, one JSON object a line. One line is in memory at a time.

A line is a request's body; or ``{"method", "url", "body"}`` with or without ``custom_id``, as in
the batch files of OpenAI and BigModel; or ``{"request": {...}}`` around either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from glimmer.migration.addresses import Endpoint, endpoint_of
from glimmer.migration.call import UNKNOWN, Call
from glimmer.migration.finding import FileFindings
from glimmer.migration.rules import RULES, check_call
from glimmer.migration.target import Target

MAX_LINE_BYTES = 16 << 20
"""A request with pictures in it is some megabytes; what is longer is no request."""
_MAX_IDS = 100_000
_CHUNK = 1 << 20


def check_requests(stream: BinaryIO, target: Target, findings: FileFindings) -> int:
    """Add what is found in ``stream`` and return how many requests it held."""
    count = 0
    seen: set[int] = set()
    for number, line in _lines(stream):
        if line is None:
            _skip(findings, number, f"longer than {MAX_LINE_BYTES >> 20} MiB")
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            _skip(findings, number, "not UTF-8")
            continue
        except (ValueError, RecursionError):
            _skip(findings, number, "not JSON")
            continue
        call = as_call(value, number)
        if call is None:
            _skip(findings, number, "no request")
            continue
        count += 1
        check_call(call, target, findings)
        _check_request_id(call, seen, findings)
    return count


def as_call(value: object, line: int | None) -> Call | None:
    """The request that a JSON value is or holds; None if there is none."""
    if isinstance(value, dict) and isinstance(value.get("request"), dict):
        value = value["request"]
    if not isinstance(value, dict):
        return None
    url = value.get("url") or value.get("path")
    if isinstance(value.get("body"), dict):
        body: dict[str, Any] = value["body"]
        if isinstance(url, str) and (endpoint := endpoint_of(url)) != "other":
            return Call(endpoint, body, line)
        value = body
    # Without a model it would be refused everywhere; it is a conversation to learn from.
    guessed = _guess(value) if "model" in value else None
    return None if guessed is None else Call(guessed, value, line)


def _guess(body: dict[str, Any]) -> Endpoint | None:
    """By the keys that only one endpoint has."""
    messages = body.get("messages")
    if isinstance(messages, list) or messages is UNKNOWN:
        return "messages" if "system" in body or "stop_sequences" in body else "chat"
    if "prompt" in body:
        return "completions"
    if "input" in body:
        talks = {"instructions", "max_output_tokens", "tools", "reasoning", "text"} & body.keys()
        return "responses" if talks else "embeddings"
    return None


def _check_request_id(call: Call, seen: set[int], findings: FileFindings) -> None:
    identifier = call.parameters.get("request_id")
    if not isinstance(identifier, str):
        return
    if (key := hash(identifier)) in seen:
        findings.add(RULES["request-id-repeated"], "a request_id that came before", call.line)
    elif len(seen) < _MAX_IDS:
        seen.add(key)


def _skip(findings: FileFindings, number: int, reason: str) -> None:
    findings.add(RULES["unreadable-line"], reason, number)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines by number from 1; None in place of one that is too long, of which nothing is kept."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
            yield number, line
            continue
        while (rest := stream.readline(_CHUNK)) and not rest.endswith(b"\n"):
            pass
        yield number, None
