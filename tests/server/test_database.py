"""The database: made when missing, kept private, and errors that name it without its password."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sqlite3
import stat
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text, update

from glimmer.errors import GlimmerError, InvalidParameterError
from glimmer.server.database import SETTINGS, Database, DatabaseError, from_ms, to_ms
from glimmer.server.paths import data_dir, default_database_path, default_master_key_path

PASSWORD = "s3cret-word"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def pragma(database: Database, name: str) -> object:
    with database.read() as connection:
        return connection.execute(text(f"PRAGMA {name}")).scalar_one()


@pytest.mark.parametrize("url", ["{}/server.db", "sqlite:///{}/server.db"])
def test_a_sqlite_file_is_made_for_its_owner_alone(tmp_path: Path, url: str) -> None:
    path = tmp_path / "server.db"
    old = os.umask(0)
    try:
        with Database(url.format(tmp_path)) as database:
            assert database.path == path
            assert pragma(database, "journal_mode") == "wal"
            assert pragma(database, "synchronous") == 1  # NORMAL
            assert pragma(database, "busy_timeout") > 0
            with database.write() as connection:
                connection.execute(update(SETTINGS).values(value=SETTINGS.c.value))
            files = sorted(tmp_path.iterdir())
            assert [file.name for file in files] == ["server.db", "server.db-shm", "server.db-wal"]
            assert {mode_of(file) for file in files} == {0o600}
    finally:
        os.umask(old)


def test_the_default_is_in_the_users_data_folder(tmp_path: Path) -> None:
    environ = {"XDG_DATA_HOME": str(tmp_path / "data")}
    with Database(environ=environ) as database:
        assert database.path == tmp_path / "data" / "glimmer" / "server.db"
    assert default_database_path(environ).is_file()
    assert mode_of(data_dir(environ)) == 0o700


def test_default_paths() -> None:
    assert data_dir({}) == Path.home() / ".local" / "share" / "glimmer"
    assert data_dir({"XDG_DATA_HOME": "relative"}) == data_dir({})
    assert default_master_key_path(Path("a/b.db")) == Path("a/master.key")
    assert default_master_key_path(None, {}) == data_dir({}) / "master.key"


def test_what_is_written_is_there_later_and_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "server.db")
    query = select(SETTINGS.c.value)
    with Database(path) as database:
        with database.write() as connection:
            connection.execute(database.insert_new(SETTINGS), {"name": "a", "value": "1"})
        with contextlib.suppress(ZeroDivisionError), database.write() as connection:
            connection.execute(database.insert_new(SETTINGS), {"name": "b", "value": "2"})
            raise ZeroDivisionError
        with database.write() as connection:
            connection.execute(database.insert_new(SETTINGS), {"name": "a", "value": "3"})
    with Database(path, create=False) as database, database.read() as connection:
        assert connection.execute(query.where(SETTINGS.c.name == "a")).scalar_one() == "1"
        assert connection.execute(query.where(SETTINGS.c.name == "b")).first() is None


def open_and_write(path: str, number: int) -> None:
    with Database(path) as database, database.write() as connection:
        row = {"name": f"process {number}", "value": ""}
        connection.execute(database.insert_new(SETTINGS), row)


def test_processes_that_start_together_make_the_tables_once(tmp_path: Path) -> None:
    path = str(tmp_path / "server.db")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(open_and_write, [(path, number) for number in range(16)])
    with Database(path, create=False) as database, database.read() as connection:
        assert len(connection.execute(select(SETTINGS)).all()) == 17  # the version is one more


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    with Database(str(path)) as database, database.write() as connection:
        connection.execute(update(SETTINGS).values(value="7"))
    with pytest.raises(DatabaseError, match="version 7, made by a newer Glimmer") as caught:
        Database(str(path))
    assert str(path) in str(caught.value)


def test_a_folder_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="Make the folder"):
        Database(str(tmp_path / "missing" / "server.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="is a folder"):
        Database(str(tmp_path))


def test_another_file_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"Not a database, but long enough to be read as one." * 100)
    with pytest.raises(DatabaseError, match="file is not a database"):
        Database(str(path))
    assert path.read_bytes().startswith(b"Not a database")


@pytest.mark.parametrize("content", [None, b""])
def test_a_reader_makes_nothing(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "server.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatabaseError, match="no keys and no ledger"):
        Database(str(path), create=False)
    assert path.exists() == (content is not None)


def test_a_table_that_is_lost_later_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    with Database(str(path)) as database:
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TABLE glimmer_settings")
        connection.close()
        with (
            pytest.raises(DatabaseError, match="no such table") as caught,
            database.read() as reader,
        ):
            reader.execute(select(SETTINGS))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://user:{PASSWORD}@host/name",
        f"sqlite://user:{PASSWORD}@host/name.db",
        f"postgresql+asyncpg://user:{PASSWORD}@host/name",
        f"postgresql://user:{PASSWORD}@host:port/name",
        f"postgresql://user:a@{PASSWORD}@host/name",
        f"postgresql://user:a@b/{PASSWORD}@host/name",
        f"postgresql://user/{PASSWORD}@host/name",
        f"://{PASSWORD}",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        "",
    ],
)
def test_other_urls_are_wrong_use(url: str) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        Database(url)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{PASSWORD}@127.0.0.1:1/name",
        f"postgres://user@127.0.0.1:1/name?password={PASSWORD}",
        f"postgresql://user:{PASSWORD}@/name?host=/nowhere/{PASSWORD}",
        f"postgresql://user:{PASSWORD}@127.0.0.1:1/name?no_such_option={PASSWORD}",
    ],
)
def test_a_server_that_cannot_be_reached(url: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(DatabaseError, match="postgresql://user@") as caught:
        Database(url)
    error: BaseException | None = caught.value
    assert PASSWORD not in str(error)
    assert caught.value.__suppress_context__
    assert isinstance(error, GlimmerError)


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=8))])))
def test_times_keep_their_milliseconds(time: datetime) -> None:
    kept = from_ms(to_ms(time))
    assert timedelta(0) <= time - kept < timedelta(milliseconds=1)
    assert to_ms(kept) == to_ms(time)
