"""Where the server keeps what must outlive it: its tables, in SQLite or PostgreSQL.

Knows no request. SQLite runs with a write-ahead log and synchronous=NORMAL: what is committed
survives the death of the process; a power cut may take the last commits, never the file.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Insert,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from glimmer.closing import ClosesAtExit
from glimmer.errors import GlimmerError, InvalidParameterError
from glimmer.server.paths import default_database_path

SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 5
_SCHEMA_LOCK = 0x676C696D  # any number, as long as every Glimmer takes the same
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# A PostgreSQL database may be shared with other programs: the prefix keeps out of their way.
_tables = MetaData()
SETTINGS = Table(
    "glimmer_settings",
    _tables,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
KEYS = Table(
    "glimmer_keys",
    _tables,
    Column("id", String(32), primary_key=True),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("models", Text, nullable=False),  # a JSON array, as is the next
    Column("endpoints", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("concurrency", BigInteger),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("requests_per_day", BigInteger),
    Column("tokens_per_day", BigInteger),
)
USAGE = Table(
    "glimmer_usage",
    _tables,
    Column("id", String(32), primary_key=True),
    Column("time_ms", BigInteger, nullable=False),
    Column("key_id", String(32)),
    Column("project", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("latency_s", Double, nullable=False),
    Column("time_to_first_token_s", Double),
    Column("status", Integer, nullable=False),
    Index("glimmer_usage_by_time", "time_ms"),
    Index("glimmer_usage_by_key", "key_id", "time_ms"),
)


class DatabaseError(GlimmerError):
    """The database cannot be opened, read or written.

    The message names the database, never its password. It is for the operator, not for a client.
    """


def to_ms(time: datetime) -> int:
    """How times are stored: whole milliseconds since 1970, UTC, rounded down."""
    return (time - _EPOCH) // timedelta(milliseconds=1)


def from_ms(time_ms: int) -> datetime:
    """The aware UTC time that ``to_ms`` gave."""
    return _EPOCH + timedelta(milliseconds=time_ms)


class Database(ClosesAtExit):
    """One engine for all tables; safe to use from several threads.

    ``url`` is "postgresql://...", "sqlite:///FILE" or the path of a SQLite file; None is the
    default file, whose folder is made when missing. Without ``create`` only what exists already
    is opened. Missing tables are made; a SQLite file that is made here is its owner's alone (0600).

    Raises:
        InvalidParameterError: a URL of another kind.
        DatabaseError: no such folder or database, no right, no answer, no psycopg, or the tables
            are a newer Glimmer's.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        create: bool = True,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._url, self.path = _parse(url, environ)
        """``path`` is the SQLite file; None for PostgreSQL."""
        self.name = str(self.path) if self.path is not None else _without_secrets(self._url)
        """How messages call it."""
        if self.path is not None:
            self._prepare_file(self.path, create, is_default=url is None)
        self._engine = self._make_engine()
        self._writer = self._engine.execution_options(glimmer_writes=True)
        try:
            self._prepare_tables(create)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections that are not in use; another use would open new ones."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that changes nothing.

        Raises:
            DatabaseError: the database fails.
        """
        with self._errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction, committed when the block ends well and undone otherwise.

        Raises:
            DatabaseError: the database fails; then nothing of it was done, unless the connection
                broke during the commit itself.
        """
        with self._errors(), self._writer.begin() as connection:
            yield connection

    def insert_new(self, table: Table) -> Insert:
        """An insert that passes over rows whose primary key is there already."""
        if self.path is not None:
            return sqlite.insert(table).on_conflict_do_nothing()
        return postgresql.insert(table).on_conflict_do_nothing()

    def _prepare_file(self, path: Path, create: bool, *, is_default: bool) -> None:
        if path.is_dir():
            raise DatabaseError(f"{path} is a folder; name a file in it.")
        try:
            if not create:
                if not path.exists():
                    raise self._none_there()
                return
            if is_default:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its log files the mode of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return
        except OSError as error:
            remark = ""
            if isinstance(error, FileNotFoundError):
                remark = f". Make the folder {path.parent} first, or name another file"
            raise DatabaseError(
                f"The database {path} cannot be opened: {error.strerror or error}{remark}."
            ) from error

    def _make_engine(self) -> Engine:
        if self.path is not None:
            engine = create_engine(
                self._url, connect_args={"timeout": _BUSY_TIMEOUT_S}, hide_parameters=True
            )
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        # A server that is gone must be noticed within seconds: requests wait for it.
        waits = {"connect_timeout": "5", "tcp_user_timeout": "10000"}
        try:
            return create_engine(
                self._url.update_query_dict({**waits, **self._url.query}),
                pool_pre_ping=True,
                hide_parameters=True,
            )
        except ImportError as error:
            raise DatabaseError(
                "PostgreSQL needs the package psycopg: pip install 'glimmer-lm[postgresql]'"
            ) from error

    def _prepare_tables(self, create: bool) -> None:
        with self.read() as connection:
            version = _schema_version(connection)
        if version is None:
            if not create:
                raise self._none_there()
            version = self._make_tables()
        if version > SCHEMA_VERSION:
            raise DatabaseError(
                f"The tables in {self.name} are of version {version}, made by a newer Glimmer; "
                f"this one knows versions up to {SCHEMA_VERSION}. Update Glimmer, or name another "
                "database."
            )

    def _make_tables(self) -> int:
        with self.write() as connection:
            if self.path is None:
                connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            version = _schema_version(connection)  # another process may have been faster
            if version is None:
                version = SCHEMA_VERSION
                _tables.create_all(connection)
                row = {"name": "schema_version", "value": str(version)}
                connection.execute(insert(SETTINGS), row)
        return version

    def _none_there(self) -> DatabaseError:
        return DatabaseError(
            f"There are no keys and no ledger in {self.name} yet. `glimmer keys create` makes "
            "them, and so does a server."
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = " ".join(str(getattr(error, "orig", None) or error.args[0]).split())
            for secret in _secrets(self._url):
                reason = reason.replace(secret, "***")
            # Not chained: what the driver says might quote the URL in a traceback.
            end = "" if reason.endswith((".", "?")) else "."
            raise DatabaseError(f"The database {self.name} cannot be used: {reason}{end}") from None


def _parse(url: str | None, environ: Mapping[str, str]) -> tuple[URL, Path | None]:
    """The URL as SQLAlchemy takes it, and the SQLite file if it is one."""
    if url is None:
        path = default_database_path(environ)
    elif "://" not in url:
        path = Path(url)
    else:
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):  # their text quotes the URL, password and all
            parsed = None
        # A bare @ in a password moves its end into the host, which messages show.
        if parsed is None or "@" in f"{parsed.host}{parsed.database}":
            raise InvalidParameterError(
                "The database's URL cannot be read. It must look like "
                "postgresql://USER:PASSWORD@HOST/NAME, with / : @ in a password written as "
                "%2F %3A %40, or like sqlite:///FILE."
            )
        if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
            return parsed.set(drivername="postgresql+psycopg"), None
        if parsed.drivername != "sqlite" or parsed.query or parsed.host:
            raise InvalidParameterError(
                "The database's URL must begin with postgresql:// or be sqlite:///FILE, but it "
                f"begins with {parsed.drivername}://."
            )
        path = Path(parsed.database or "")
    if str(path) in (".", ":memory:") or "\0" in str(path):
        raise InvalidParameterError(
            "A SQLite database must be a file: keys are to outlive the server."
        )
    return URL.create("sqlite", database=str(path)), path


def _without_secrets(url: URL) -> str:
    return URL.create(
        "postgresql", url.username, host=url.host, port=url.port, database=url.database
    ).render_as_string()


def _secrets(url: URL) -> list[str]:
    """What of the URL nobody may read, longest first."""
    values = [url.password, *(url.query.get(name) for name in ("password", "sslpassword"))]
    return sorted((str(value) for value in values if value), key=len, reverse=True)


def _schema_version(connection: Connection) -> int | None:
    if not inspect(connection).has_table(SETTINGS.name):
        return None
    query = select(SETTINGS.c.value).where(SETTINGS.c.name == "schema_version")
    return int(connection.execute(query).scalar_one())


def _configure_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    # The driver's own BEGIN comes late and not before every statement; ours is below.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: one that read first could not wait for another's.
    writes = connection.get_execution_options().get("glimmer_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
