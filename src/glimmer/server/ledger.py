"""Who used how much, when: one row per request, never any text. Knows no HTTP.

One thread writes; whatever has queued up meanwhile goes into its next commit. A record's future is
done when the record is committed, so that a server which waits for it before it ends an answer
loses nothing of what it has answered, even when it is killed.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, case, func, literal_column, select

from glimmer.closing import ClosesAtExit
from glimmer.errors import InvalidParameterError
from glimmer.server.database import KEYS, USAGE, Database, from_ms, to_ms

Grouping = Literal["day", "key", "model", "project"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)

_MAX_QUEUED = 10_000
_MAX_BATCH = 1_000
_RETRY_DELAYS_S = (0.1, 0.5, 1.5)
_MAX_NAME_LENGTH = 200
_MAX_COUNT = 2**53
_DAY_MS = 86_400_000
_TOO_MANY_REQUESTS = 429

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One request that has ended.

    Raises:
        InvalidParameterError: a value that a database could refuse: it would take the records
            that are committed with it along.
    """

    time: datetime
    """When it began; aware."""
    key_id: str | None
    """None where the server asks for no key."""
    project: str
    model: str
    """As it is served; "" where there is none of the name that a client asked for."""
    endpoint: str
    """A route's template, such as /v1/batches/{batch_id}: what a client fills in is its own."""
    prompt_tokens: int
    """Cached ones included."""
    cached_tokens: int
    completion_tokens: int
    latency_s: float
    time_to_first_token_s: float | None
    status: int
    """The HTTP status; 499 where the client went away."""

    def __post_init__(self) -> None:
        if self.time.tzinfo is None:
            raise InvalidParameterError("A record's time must have a time zone.")
        for name in ("project", "model", "endpoint"):
            _check_text(name, getattr(self, name))
        if self.key_id is not None:
            _check_text("key_id", self.key_id)
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "status"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= _MAX_COUNT:
                raise InvalidParameterError(f"{name} must be a count, but it is {value!r}.")
        for name in ("latency_s", "time_to_first_token_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InvalidParameterError(f"{name} must be seconds, but it is {value!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """Totals of one group. What was not grouped by is None; so is the key of requests without."""

    day: date | None
    """In UTC."""
    key_id: str | None
    key_name: str | None
    model: str | None
    project: str | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    errors: int
    """Requests whose status was 400 or more."""
    mean_latency_s: float


@dataclass(frozen=True, slots=True)
class DayTotals:
    """What a key has used today, as a limiter counts it."""

    requests: int
    """Without those that were answered 429: they were not let in."""
    tokens: int
    """Prompt and answer."""


class Ledger(ClosesAtExit):
    """Records and sums up. Safe to use from several threads; the first record starts the writer."""

    def __init__(
        self,
        database: Database,
        *,
        max_queued: int = _MAX_QUEUED,
        retry_delays_s: tuple[float, ...] = _RETRY_DELAYS_S,
    ) -> None:
        self._database = database
        self._max_queued = max_queued
        self._retry_delays_s = retry_delays_s
        self._queue: deque[tuple[dict[str, Any], Future[bool]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._num_lost = 0
        self._is_failing = False

    @property
    def num_lost(self) -> int:
        """Records that could not be written since the start."""
        return self._num_lost

    @property
    def num_queued(self) -> int:
        """Records that wait for the next commit."""
        return len(self._queue)

    def record(self, record: UsageRecord) -> Future[bool]:
        """Queue a record; returns at once and never raises.

        The future gives True when the record is committed, and False when it is lost: the database
        failed several times, too many records wait, or the ledger is closed. Nothing cancels it.
        """
        future: Future[bool] = Future()
        # A client that goes away cancels what waits for this, and must not take the record along.
        future.set_running_or_notify_cancel()
        row = _to_row(record)
        with self._changed:
            is_lost = self._closed or len(self._queue) >= self._max_queued
            if not is_lost:
                self._queue.append((row, future))
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._write_all, name="glimmer-ledger", daemon=True
                    )
                    self._thread.start()
                self._changed.notify()
        if is_lost:
            self._lose([future], "closed" if self._closed else "too many wait")
        return future

    def close(self) -> None:
        """Write what is queued and end the writer. Takes no records any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def usage(
        self,
        by: Collection[Grouping],
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        project: str | None = None,
    ) -> tuple[UsageRow, ...]:
        """Totals per group, in the groups' order; one row, or none, where ``by`` is empty.

        ``since`` is included, ``until`` is not; both are aware.

        Raises:
            InvalidParameterError: ``by`` names something else.
            DatabaseError: the database fails.
        """
        if unknown := sorted(set(by) - set(GROUPINGS)):
            raise InvalidParameterError(
                f"Usage is not known by {unknown[0]!r}; it is by {', '.join(GROUPINGS)}."
            )
        groups = [column for name in GROUPINGS if name in by for column in _GROUP_COLUMNS[name]]
        count = func.count()
        query = select(
            *groups,
            count.label("requests"),
            *(
                func.coalesce(func.sum(USAGE.c[name]), 0).label(name)
                for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
            ),
            func.coalesce(func.sum(case((USAGE.c.status >= 400, 1), else_=0)), 0).label("errors"),
            func.avg(USAGE.c.latency_s).label("mean_latency_s"),
        ).having(count > 0)
        if "key" in by:
            query = query.select_from(USAGE.outerjoin(KEYS, USAGE.c.key_id == KEYS.c.id))
        if project is not None:
            query = query.where(USAGE.c.project == project)
        query = _within(query, since, until).group_by(*groups).order_by(*groups)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return tuple(_usage_row(dict(row)) for row in rows)

    def today(self, key_id: str, *, now: datetime | None = None) -> DayTotals:
        """What a key has used since 00:00 UTC. Raises DatabaseError."""
        return self._today(USAGE.c.key_id == key_id, now).get(key_id, DayTotals(0, 0))

    def today_by_key(self, *, now: datetime | None = None) -> dict[str, DayTotals]:
        """``today`` of each key that has used something. Raises DatabaseError."""
        return self._today(USAGE.c.key_id.is_not(None), now)

    def _today(self, which: ColumnElement[bool], now: datetime | None) -> dict[str, DayTotals]:
        now = (now or datetime.now(UTC)).astimezone(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        query = (
            select(
                USAGE.c.key_id,
                func.count().label("requests"),
                func.sum(USAGE.c.prompt_tokens + USAGE.c.completion_tokens).label("tokens"),
            )
            .where(which, USAGE.c.status != _TOO_MANY_REQUESTS)
            .group_by(USAGE.c.key_id)
        )
        with self._database.read() as connection:
            rows = connection.execute(_within(query, midnight, None)).all()
        return {row.key_id: DayTotals(int(row.requests), int(row.tokens)) for row in rows}

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return
                size = min(len(self._queue), _MAX_BATCH)
                batch = [self._queue.popleft() for _ in range(size)]
            error = self._commit([row for row, _ in batch])
            futures = [future for _, future in batch]
            if error is not None:
                self._lose(futures, str(error))
                continue
            self._is_failing = False
            for future in futures:
                future.set_result(True)

    def _commit(self, rows: list[dict[str, Any]]) -> Exception | None:
        # While the database stays away each batch gets one try: the queue must not grow meanwhile.
        delays_s = () if self._is_failing else self._retry_delays_s
        for delay_s in (*delays_s, None):
            try:
                with self._database.write() as connection:
                    # A commit may have succeeded although its answer was lost; then a second try
                    # finds the rows and passes over them.
                    connection.execute(self._database.insert_new(USAGE), rows)
            except (
                Exception
            ) as error:  # whatever it is: without this thread all later ones are lost
                if delay_s is None:
                    return error
                time.sleep(delay_s)
            else:
                return None
        raise AssertionError("the last try returns")

    def _lose(self, futures: list[Future[bool]], reason: str) -> None:
        with self._changed:
            self._num_lost += len(futures)
            is_new, self._is_failing = not self._is_failing, True
        if is_new:  # once per failure, not once per request
            _log.error("The ledger loses records: %s", reason)
        for future in futures:
            future.set_result(False)


_GROUP_COLUMNS: dict[Grouping, tuple[ColumnElement[Any], ...]] = {
    # The divisor is part of the text: as a parameter PostgreSQL could not tell that the column
    # selected and the one grouped by are the same.
    "day": ((USAGE.c.time_ms // literal_column(str(_DAY_MS))).label("day"),),
    "key": (USAGE.c.key_id, KEYS.c.name.label("key_name")),
    "model": (USAGE.c.model,),
    "project": (USAGE.c.project,),
}


def _within(query: Select[Any], since: datetime | None, until: datetime | None) -> Select[Any]:
    if since is not None:
        query = query.where(USAGE.c.time_ms >= to_ms(since))
    if until is not None:
        query = query.where(USAGE.c.time_ms < to_ms(until))
    return query


def _usage_row(row: dict[str, Any]) -> UsageRow:
    day = row.get("day")
    # PostgreSQL's sums are decimals.
    counts = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "errors")
    return UsageRow(
        day=None if day is None else from_ms(day * _DAY_MS).date(),
        key_id=row.get("key_id"),
        key_name=row.get("key_name"),
        model=row.get("model"),
        project=row.get("project"),
        mean_latency_s=float(row["mean_latency_s"]),
        **{name: int(row[name]) for name in counts},
    )


def _to_row(record: UsageRecord) -> dict[str, Any]:
    time_ms = to_ms(record.time)
    return {
        # Rising ids keep the index's new rows together.
        "id": f"{time_ms:012x}{secrets.token_hex(10)}",
        "time_ms": time_ms,
        "key_id": record.key_id,
        "project": record.project,
        "model": record.model,
        "endpoint": record.endpoint,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "latency_s": record.latency_s,
        "time_to_first_token_s": record.time_to_first_token_s,
        "status": record.status,
    }


def _check_text(what: str, text: str) -> None:
    if len(text) > _MAX_NAME_LENGTH or not (text.isprintable() or text == ""):
        raise InvalidParameterError(
            f"{what} must be at most {_MAX_NAME_LENGTH} printable characters, but it is "
            f"{text[:_MAX_NAME_LENGTH]!r}."
        )
