"""The ledger: sums are right, and what its future calls committed survives a kill -9.

``LedgerContract`` runs here on SQLite and in test_postgres.py on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from glimmer.errors import InvalidParameterError
from glimmer.server.database import USAGE, Database, DatabaseError
from glimmer.server.keys import KeyStore
from glimmer.server.ledger import DayTotals, Ledger, UsageRecord, UsageRow

PATIENCE_S = 60
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
RECORD = UsageRecord(
    time=NOON,
    key_id=None,
    project="p",
    model="demo",
    endpoint="/v1/chat/completions",
    prompt_tokens=100,
    cached_tokens=60,
    completion_tokens=10,
    latency_s=0.5,
    time_to_first_token_s=0.125,
    status=200,
)
EMPTY: dict[str, Any] = dict.fromkeys(("day", "key_id", "key_name", "model", "project"))


def total(**values: Any) -> UsageRow:
    return UsageRow(**(EMPTY | values))


def write(ledger: Ledger, *records: UsageRecord) -> None:
    futures = [ledger.record(record) for record in records]
    assert all(future.result(PATIENCE_S) for future in futures)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(str(tmp_path / "server.db")) as opened:
        yield opened


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    with Ledger(database, retry_delays_s=(0.01,)) as opened:
        yield opened


class LedgerContract:
    """What holds on every database; the fixture ``database`` gives an empty one."""

    def test_what_is_recorded_is_stored(self, database: Database, ledger: Ledger) -> None:
        write(ledger, RECORD, replace(RECORD, time_to_first_token_s=None, key_id="k" * 32))
        with database.read() as connection:
            first, second = connection.execute(select(USAGE).order_by(USAGE.c.key_id)).mappings()
        if first["key_id"] is not None:  # where NULL is last
            first, second = second, first
        assert {name: value for name, value in first.items() if name != "id"} == {
            "time_ms": 1_795_521_600_000,
            "key_id": None,
            "project": "p",
            "model": "demo",
            "endpoint": "/v1/chat/completions",
            "prompt_tokens": 100,
            "cached_tokens": 60,
            "completion_tokens": 10,
            "latency_s": 0.5,
            "time_to_first_token_s": 0.125,
            "status": 200,
        }
        assert (second["key_id"], second["time_to_first_token_s"]) == ("k" * 32, None)

    def test_sums(self, database: Database, ledger: Ledger) -> None:
        key, _ = KeyStore(database, b"m" * 32).create("p", name="Li")
        later = NOON + timedelta(days=1)
        write(
            ledger,
            RECORD,
            replace(RECORD, key_id=key.id, latency_s=1.5),
            replace(RECORD, key_id=key.id, time=later, status=500, completion_tokens=2**40),
            replace(RECORD, time=later, project="q", model="glm", cached_tokens=0, status=399),
        )
        assert ledger.usage([]) == (
            total(
                requests=4,
                prompt_tokens=400,
                cached_tokens=180,
                completion_tokens=2**40 + 30,
                errors=1,
                mean_latency_s=0.75,
            ),
        )
        by_day = ledger.usage(["day"])
        assert [(row.day, row.requests, row.errors) for row in by_day] == [
            (date(2026, 11, 24), 2, 0),
            (date(2026, 11, 25), 2, 1),
        ]
        assert by_day[0].mean_latency_s == 1
        by_key = ledger.usage(["key"])
        assert {(row.key_id, row.key_name, row.requests) for row in by_key} == {
            (None, None, 2),
            (key.id, "Li", 2),
        }
        every = ledger.usage(["project", "model", "key", "day"])
        assert [row.requests for row in every] == [1, 1, 1, 1]
        assert {(row.day, row.key_id, row.model, row.project) for row in every} == {
            (date(2026, 11, 24), None, "demo", "p"),
            (date(2026, 11, 24), key.id, "demo", "p"),
            (date(2026, 11, 25), key.id, "demo", "p"),
            (date(2026, 11, 25), None, "glm", "q"),
        }

    def test_sums_of_a_time_and_a_project(self, ledger: Ledger) -> None:
        write(
            ledger,
            *(
                replace(RECORD, time=NOON + timedelta(hours=h), project="pq"[h % 2])
                for h in range(6)
            ),
        )

        def count(**which: Any) -> int:
            return sum(row.requests for row in ledger.usage(["project"], **which))

        assert count(since=NOON + timedelta(hours=2)) == 4
        assert count(until=NOON + timedelta(hours=2)) == 2
        assert count(since=NOON + timedelta(hours=1), until=NOON + timedelta(hours=5)) == 4
        china = timezone(timedelta(hours=8))
        assert count(since=datetime(2026, 11, 24, 22, tzinfo=china)) == 4
        assert count(project="q") == 3
        assert count(project="r") == 0
        assert ledger.usage([], project="r") == ()

    def test_an_empty_ledger(self, ledger: Ledger) -> None:
        assert ledger.usage([]) == ()
        assert ledger.usage(["day", "key"]) == ()
        assert ledger.today("k", now=NOON) == DayTotals(0, 0)
        assert ledger.today_by_key(now=NOON) == {}

    def test_today(self, ledger: Ledger) -> None:
        mine = replace(RECORD, key_id="a")
        midnight = NOON.replace(hour=0)
        write(
            ledger,
            mine,
            replace(mine, time=midnight),
            replace(mine, time=midnight - timedelta(milliseconds=1)),
            replace(mine, status=429, prompt_tokens=0, completion_tokens=0),
            replace(mine, status=500),
            replace(RECORD, key_id="b"),
            RECORD,
        )
        assert ledger.today("a", now=NOON) == DayTotals(3, 330)
        china = timezone(timedelta(hours=8))
        assert ledger.today("a", now=NOON.astimezone(china)) == DayTotals(3, 330)
        assert ledger.today_by_key(now=NOON) == {"a": DayTotals(3, 330), "b": DayTotals(1, 110)}

    def test_many_threads(self, database: Database, ledger: Ledger) -> None:
        def work() -> None:
            write(ledger, *[RECORD] * 100)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (row,) = ledger.usage([])
        assert row.requests == 800

    def test_a_commit_whose_answer_was_lost_counts_once(
        self, database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, failures = database.write, [1]

        @contextmanager
        def commit_and_fail() -> Iterator[Connection]:
            with real() as connection:
                yield connection
            if failures:
                failures.pop()
                raise DatabaseError("The connection broke.")

        monkeypatch.setattr(database, "write", commit_and_fail)
        write(ledger, RECORD)
        (row,) = ledger.usage([])
        assert (row.requests, ledger.num_lost) == (1, 0)


class TestLedger(LedgerContract):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {"time": NOON.replace(tzinfo=None)},
        {"model": "a\0b"},
        {"model": "\ud800"},
        {"endpoint": "x" * 201},
        {"key_id": "\n"},
        {"prompt_tokens": -1},
        {"completion_tokens": 1.5},
        {"cached_tokens": 2**63},
        {"latency_s": float("nan")},
        {"time_to_first_token_s": float("inf")},
    ],
)
def test_a_record_that_exists_can_be_stored(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError):
        replace(RECORD, **changes)


def test_an_unknown_grouping(ledger: Ledger) -> None:
    with pytest.raises(InvalidParameterError, match="it is by day, key, model, project"):
        ledger.usage(["month"])  # type: ignore[list-item]


class Gate:
    """Holds the writer at its next commit, or lets it fail."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_commits = 0
        self.reached = threading.Event()
        self.open = threading.Event()
        self.error: Exception | None = None
        self._write = database.write
        monkeypatch.setattr(database, "write", self.write)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        self.num_commits += 1
        self.reached.set()
        assert self.open.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        with self._write() as connection:
            yield connection


@pytest.fixture
def gate(database: Database, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(database, monkeypatch)


def test_what_queues_up_goes_into_one_commit(ledger: Ledger, gate: Gate) -> None:
    first = ledger.record(RECORD)
    assert gate.reached.wait(PATIENCE_S)
    rest = [ledger.record(RECORD) for _ in range(50)]
    assert not any(future.done() for future in (first, *rest))
    assert ledger.num_queued == 50
    gate.open.set()
    assert all(future.result(PATIENCE_S) for future in (first, *rest))
    assert gate.num_commits == 2


def test_a_client_that_goes_away_does_not_take_its_record_along(ledger: Ledger, gate: Gate) -> None:
    async def answer() -> Future[bool]:
        future = ledger.record(RECORD)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(future), 0.01)
        gate.open.set()
        assert await asyncio.wrap_future(ledger.record(RECORD))
        return future

    assert asyncio.run(answer()).result(PATIENCE_S)
    (row,) = ledger.usage([])
    assert row.requests == 2


def test_the_queue_is_bounded(
    database: Database, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    with Ledger(database, max_queued=3) as ledger:
        first = ledger.record(RECORD)
        assert gate.reached.wait(PATIENCE_S)
        kept = [ledger.record(RECORD) for _ in range(3)]
        lost = [ledger.record(RECORD) for _ in range(5)]
        assert [future.result(PATIENCE_S) for future in lost] == [False] * 5
        assert ledger.num_lost == 5
        gate.open.set()
        assert all(future.result(PATIENCE_S) for future in (first, *kept))
    assert caplog.text.count("too many wait") == 1


def test_a_failure_that_passes_loses_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = database.write, [DatabaseError("Away."), OSError("Odd.")]

    @contextmanager
    def write_later() -> Iterator[Connection]:
        if failures:
            raise failures.pop()
        with real() as connection:
            yield connection

    monkeypatch.setattr(database, "write", write_later)
    with Ledger(database, retry_delays_s=(0.01, 0.01)) as ledger:
        write(ledger, RECORD)
        assert ledger.num_lost == 0


def test_a_failure_that_stays_is_told_once_and_ends_nothing(
    ledger: Ledger, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gate.error = DatabaseError("The database x cannot be used: it is away.")
    gate.open.set()
    assert ledger.record(RECORD).result(PATIENCE_S) is False
    assert gate.num_commits == 2
    assert ledger.record(RECORD).result(PATIENCE_S) is False
    assert gate.num_commits == 3  # no second try while it is known to be away
    assert ledger.num_lost == 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "it is away" in caplog.text
    gate.error = None
    write(ledger, RECORD)
    assert ledger.num_lost == 2


def test_closing_writes_what_is_queued(database: Database, gate: Gate) -> None:
    ledger = Ledger(database)
    futures = [ledger.record(RECORD) for _ in range(5000)]
    gate.open.set()
    ledger.close()
    assert all(future.result(0) for future in futures)
    assert ledger.record(RECORD).result(0) is False
    ledger.close()
    (row,) = ledger.usage([])
    assert row.requests == 5000


def test_a_file_that_another_writer_holds_is_waited_for(database: Database, ledger: Ledger) -> None:
    with database.write() as connection:
        connection.execute(text("SELECT 1"))
        future = ledger.record(RECORD)
        assert not future.done()
    assert future.result(PATIENCE_S)


RECORDER = """
import os, sys
from dataclasses import replace
from glimmer.server.database import Database
from glimmer.server.ledger import Ledger
from tests.server.test_ledger import RECORD

ledger = Ledger(Database(sys.argv[1]))
window = []
for number in range(10**9):
    future = ledger.record(replace(RECORD, prompt_tokens=number))
    future.add_done_callback(
        lambda future, number=number: future.result() and os.write(1, f"{number}\\n".encode())
    )
    window.append(future)
    if len(window) == 40:  # so many requests are in flight
        window.pop(0).result()
"""


@pytest.mark.parametrize("num_lines", [1, 200, 1500])
def test_what_is_committed_survives_a_kill(tmp_path: Path, num_lines: int) -> None:
    path = str(tmp_path / "server.db")
    process = subprocess.Popen(
        [sys.executable, "-c", RECORDER, path],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(num_lines)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
    finally:
        process.kill()
        process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    told = {int(line) for line in lines if line.endswith(b"\n")}
    assert len(told) >= num_lines
    with Database(path, create=False) as database:
        with database.read() as connection:
            stored = set(connection.execute(select(USAGE.c.prompt_tokens)).scalars())
            assert connection.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
        assert told <= stored
        assert len(stored - told) <= 40  # in flight: committed, and not yet told
        with Ledger(database) as ledger:
            write(ledger, RECORD)
