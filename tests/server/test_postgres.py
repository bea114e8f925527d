"""Keys and ledger on a real PostgreSQL, which the tests start for themselves."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import delete, select, text, update

from glimmer.server.database import SETTINGS, Database, DatabaseError
from glimmer.server.ledger import Ledger
from tests.server.test_database import open_and_write
from tests.server.test_keys import KeyStoreContract, clock, store  # noqa: F401
from tests.server.test_ledger import PATIENCE_S, RECORD, LedgerContract, ledger  # noqa: F401

pytestmark = pytest.mark.slow

USER = "glimmer"
PASSWORD = "p:a/s@s word"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl: Debian keeps them off the path, one folder per version."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[-3].zfill(4)
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@dataclass
class Server:
    """A PostgreSQL in a folder of its own, reached by a socket in it."""

    folder: Path
    programs: Path
    as_user: list[str]

    def url(self, user: str = USER, password: str = PASSWORD, name: str = "postgres") -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@/{name}?host={self.folder}"

    def make(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if self.as_user:
            shutil.chown(self.folder, "postgres")
            shutil.chown(secret, "postgres")
        self._run(
            "initdb",
            *("-D", str(self.folder / "data"), "-U", USER, f"--pwfile={secret}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
        )

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder}"
        log = str(self.folder / "log")
        self._run("pg_ctl", *self._data(), "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", *self._data(), "-w", "-m", "immediate", "stop")

    def _data(self) -> tuple[str, str]:
        return "-D", str(self.folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        # Not piped: the server that pg_ctl starts would keep the pipe open.
        with (self.folder.parent / f"{self.folder.name}.out").open("w+") as output:
            result = subprocess.run(
                [*self.as_user, str(self.programs / program), *arguments],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
                timeout=120,
            )
            output.seek(0)
            assert result.returncode == 0, output.read()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg")
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    as_user: list[str] = []
    if os.geteuid() == 0:  # as whom PostgreSQL refuses to run
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser")
        as_user = ["runuser", "-u", "postgres", "--"]
    # Not pytest's folder: its path may be too long for a socket, and closed to another user.
    outer = Path(tempfile.mkdtemp(prefix="glimmer-pg-"))
    outer.chmod(0o755)
    folder = outer / "s"
    folder.mkdir(0o700)
    started = Server(folder, found, as_user)
    try:
        started.make()
        started.start()
        try:
            yield started
        finally:
            started.stop()
    finally:
        shutil.rmtree(outer)


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    with Database(server.url()) as opened:
        try:
            yield opened
        finally:
            with opened.write() as connection:
                connection.execute(text("DROP SCHEMA public CASCADE"))
                connection.execute(text("CREATE SCHEMA public"))


class TestKeyStoreOnPostgres(KeyStoreContract):
    pass


class TestLedgerOnPostgres(LedgerContract):
    pass


def test_tables_are_made_once_and_a_newer_schema_is_refused(
    server: Server, database: Database
) -> None:
    assert database.path is None
    assert database.name == f"postgresql://{USER}@/postgres"
    Database(server.url(), create=False).close()
    newer = update(SETTINGS).where(SETTINGS.c.name == "schema_version").values(value="9")
    with database.write() as connection:
        connection.execute(newer)
    with pytest.raises(DatabaseError, match="version 9, made by a newer Glimmer"):
        Database(server.url())
    with database.write() as connection:
        connection.execute(delete(SETTINGS))
        connection.execute(text("DROP TABLE glimmer_settings, glimmer_keys, glimmer_usage"))
    with pytest.raises(DatabaseError, match="no keys and no ledger"):
        Database(server.url(), create=False)


def test_processes_that_start_together_make_the_tables_once(
    server: Server, database: Database
) -> None:
    with database.write() as connection:
        connection.execute(text("DROP TABLE glimmer_settings, glimmer_keys, glimmer_usage"))
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(open_and_write, [(server.url(), number) for number in range(8)])
    with database.read() as connection:
        assert len(connection.execute(select(SETTINGS)).all()) == 9  # the version is one more


@pytest.mark.parametrize("which", [{"password": "wr0ng-one"}, {"name": "other"}])
def test_no_error_shows_the_password(server: Server, which: dict[str, str]) -> None:
    with pytest.raises(DatabaseError, match=r"password authentication|does not exist") as caught:
        Database(server.url(**which))
    message = str(caught.value)
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "wr0ng-one"):
        assert secret not in message
    assert caught.value.__suppress_context__


def test_a_server_that_restarts(server: Server, database: Database) -> None:
    with Ledger(database, retry_delays_s=(0.01,)) as ledger:  # noqa: F811
        assert ledger.record(RECORD).result(PATIENCE_S)
        server.stop()
        try:
            assert ledger.record(RECORD).result(PATIENCE_S) is False
            with pytest.raises(DatabaseError):
                ledger.usage([])
        finally:
            server.start()
        assert ledger.record(RECORD).result(PATIENCE_S)
        (row,) = ledger.usage([])
    assert (row.requests, ledger.num_lost) == (2, 1)
