"""What the server's ledger tells: models, endpoints, lengths and times. It holds no text and no
parameters, so of those nothing is said.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from glimmer.errors import UsageError
from glimmer.migration.addresses import endpoint_of
from glimmer.migration.call import Call
from glimmer.migration.finding import FileFindings, Finding
from glimmer.migration.rules import RULES, check_call
from glimmer.migration.target import Target
from glimmer.server.database import USAGE, Database

_FAILED = 400
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class _Asked:
    """Requests of one model at one endpoint that were answered."""

    model: str
    endpoint: str
    requests: int
    longest: int
    """Prompt and answer of the longest, in tokens."""


def check_ledger(database: str | None, target: Target) -> list[Finding]:
    """What would change for the requests that this machine has answered.

    Raises:
        UsageError: the program does not move to the platform.
        DatabaseError: there is no ledger yet, or it cannot be read.
    """
    if target.direction != "hosted":
        raise UsageError(
            "The ledger tells what this machine was asked, which can be compared with the hosted "
            "platform alone: leave out --ledger or --to local."
        )
    findings = FileFindings("ledger", target.direction)
    with Database(database, create=False) as opened:
        for asked in _asked(opened):
            parameters = {"model": asked.model} if asked.model else {}
            call = Call(endpoint_of(asked.endpoint), parameters, is_whole=False)
            check_call(call, target, findings, asked.requests)
            _check_length(asked, target, findings)
        if (peak := _most_at_once(opened)) > 1:
            findings.add(RULES["concurrency"], f"{peak} requests at once")
    return findings.sorted()


def _check_length(asked: _Asked, target: Target, findings: FileFindings) -> None:
    limits = target.limits(asked.model)
    if limits is not None and limits[1] is not None and asked.longest > limits[1]:
        findings.add(
            RULES["context-length"],
            f"{asked.longest} tokens of prompt and answer for {asked.model!r}; {limits[0]} has a "
            f"context of {limits[1]}",
        )


def _asked(database: Database) -> list[_Asked]:
    groups = (USAGE.c.model, USAGE.c.endpoint)
    longest: Any = func.max(USAGE.c.prompt_tokens + USAGE.c.completion_tokens)
    query = (
        select(*groups, func.count(), longest)
        .where(USAGE.c.status < _FAILED)
        .group_by(*groups)
        .order_by(*groups)
    )
    with database.read() as connection:
        return [_Asked(*row) for row in connection.execute(query)]


def _most_at_once(database: Database) -> int:
    """The most requests that were under way together; those that failed were not all let in."""
    query = (
        select(USAGE.c.time_ms, USAGE.c.latency_s)
        .where(USAGE.c.status < _FAILED)
        .order_by(USAGE.c.time_ms)
        .execution_options(yield_per=_ROWS_AT_ONCE)
    )
    most = 0
    ends: list[float] = []
    with database.read() as connection:
        for time_ms, latency_s in connection.execute(query):
            while ends and ends[0] <= time_ms:
                heapq.heappop(ends)
            heapq.heappush(ends, time_ms + latency_s * 1000)
            most = max(most, len(ends))
    return most
