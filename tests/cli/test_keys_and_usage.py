"""`keys` and `usage`: data on standard output, and a key that is shown once."""

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from glimmer.errors import InvalidParameterError
from glimmer.server.database import Database
from glimmer.server.errors import ApiError
from glimmer.server.keys import KeyStore, open_key_store
from glimmer.server.ledger import Ledger, UsageRecord
from glimmer.server.limits import Limits
from tests.cli.conftest import Run

NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATABASE", "MASTER_KEY", "MASTER_KEY_FILE"):
        monkeypatch.delenv(f"GLIMMER_{name}", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "glimmer"


def open_store(database: Database, folder: Path) -> KeyStore:
    return open_key_store(database, folder / "master.key", {})


def make(run: Run, *arguments: str) -> str:
    result = run("keys", "create", "--project", "p", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


def test_the_key_alone_is_on_standard_output(run: Run, data_home: Path) -> None:
    result = run("keys", "create", "--project", "p")
    assert result.exit_code == 0
    assert re.fullmatch(r"[0-9a-f]{32}\.[0-9A-Za-z]{32}\n", result.stdout)
    assert "shown this once" in result.stderr
    assert result.stdout.strip().partition(".")[2] not in result.stderr
    with Database() as database:
        key = open_store(database, data_home).authenticate(result.stdout)
    assert (key.project, key.name, key.models, key.endpoints) == ("p", "", (), ())
    assert (key.expires_at, key.limits) == (None, Limits())


def test_all_that_a_key_can_be_told(run: Run, data_home: Path) -> None:
    result = run(
        *["keys", "create", "--project", "p", "--name", "Li", "--model", "demo", "--model", "b"],
        *["--endpoint", "chat", "--endpoint", "models", "--expires", "30d", "--concurrency", "1"],
        *["--rpm", "2", "--tpm", "3", "--rpd", "4", "--tpd", "5", "--json"],
    )
    report = json.loads(result.stdout)
    with Database() as database:
        key = open_store(database, data_home).authenticate(report.pop("key"))
    assert report == {
        "id": key.id,
        "project": "p",
        "name": "Li",
        "state": "active",
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at and key.expires_at.isoformat(),
        "revoked_at": None,
        "models": ["demo", "b"],
        "endpoints": ["chat", "models"],
        "limits": {
            "concurrency": 1,
            "requests_per_minute": 2,
            "tokens_per_minute": 3,
            "requests_per_day": 4,
            "tokens_per_day": 5,
        },
    }
    assert key.expires_at is not None
    assert timedelta(days=30) <= key.expires_at - NOW < timedelta(days=31)


def test_lists(run: Run) -> None:
    first = make(run, "--rpm", "5", "--expires", "2100-01-01")
    other = run("keys", "create", "--project", "q").stdout.strip()
    assert run("keys", "revoke", other.partition(".")[0]).exit_code == 0
    table = run("keys", "list")
    assert table.exit_code == 0
    lines = table.stdout.splitlines()
    assert len(lines) == 3
    assert first.partition(".")[0] in lines[1]
    assert "2100-01-01 00:00 UTC" in lines[1]
    assert "5 requests/min" in lines[1]
    assert "revoked" in lines[2]
    rows = json.loads(run("keys", "list", "--json").stdout)
    assert [(row["project"], row["state"]) for row in rows] == [("p", "active"), ("q", "revoked")]
    assert "key" not in rows[0]
    for output in (table.stdout, json.dumps(rows)):
        assert first.partition(".")[2] not in output
    only = json.loads(run("keys", "list", "--project", "q", "--json").stdout)
    assert [row["id"] for row in only] == [other.partition(".")[0]]


def test_a_key_that_is_revoked(run: Run, data_home: Path) -> None:
    text = make(run)
    key_id = text.partition(".")[0]
    result = run("keys", "revoke", key_id)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{key_id} of project p is revoked since ")
    with (
        Database() as database,
        pytest.raises(ApiError, match="revoked"),
    ):
        open_store(database, data_home).authenticate(text)
    result = run("keys", "revoke", "nobody")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "There is no key 'nobody'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expires", "tomorrow"], "must look like 30d or 2027-01-01"),
        (["--expires", "2027-02-30"], "must look like"),
        (["--expires", "999999999999d"], "must look like"),
        (["--expires", "0d"], "must expire in the future"),
        (["--expires", "2020-01-01"], "must expire in the future"),
        (["--endpoint", "chats"], "There is no endpoint 'chats'"),
        (["--rpm", "0"], "--rpm"),
        (["--model", ""], "A model must have"),
        (["--database", "mysql://u:word@h/x"], "postgresql://"),
    ],
)
def test_wrong_use(run: Run, arguments: list[str], message: str) -> None:
    result = run("keys", "create", "--project", "p", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "word" not in result.stderr


def test_where_keys_are(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(run, "--database", str(tmp_path / "own.db"))
    assert (tmp_path / "master.key").is_file()
    key_file = tmp_path / "other.key"
    result = run(
        *["keys", "list", "--database", f"sqlite:///{tmp_path}/own.db"],
        *["--master-key-file", str(key_file)],
    )
    assert result.exit_code == 1
    assert "There is no master key" in result.stderr
    assert not key_file.exists()
    monkeypatch.setenv("GLIMMER_DATABASE", str(tmp_path / "own.db"))
    monkeypatch.setenv("GLIMMER_MASTER_KEY_FILE", str(tmp_path / "master.key"))
    assert len(json.loads(run("keys", "list", "--json").stdout)) == 1
    monkeypatch.setenv("GLIMMER_MASTER_KEY", "y" * 64)
    assert "another master key" in run("keys", "list").stderr


@pytest.mark.parametrize("command", [["keys", "list"], ["keys", "revoke", "x"], ["usage"]])
def test_without_a_database_nothing_is_made(run: Run, data_home: Path, command: list[str]) -> None:
    result = run(*command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "`glimmer keys create` makes them" in result.stderr
    assert not data_home.exists()


def record(**changes: object) -> UsageRecord:
    values = {
        "time": NOW,
        "key_id": None,
        "project": "p",
        "model": "demo",
        "endpoint": "/v1/chat/completions",
        "prompt_tokens": 1000,
        "cached_tokens": 600,
        "completion_tokens": 10,
        "latency_s": 0.5,
        "time_to_first_token_s": None,
        "status": 200,
    }
    return UsageRecord(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def key_id(run: Run) -> str:
    """Of the key that used something; the ledger is filled."""
    made = make(run, "--name", "Li").partition(".")[0]
    with Database() as database, Ledger(database) as ledger:
        ledger.record(record())
        ledger.record(record(key_id=made, latency_s=1.0, status=503))
        ledger.record(record(project="q", time=NOW - timedelta(days=10), model='a "b", c'))
    return made


def test_usage_as_a_table(run: Run, key_id: str) -> None:
    result = run("usage")
    assert (result.exit_code, result.stderr) == (0, "")
    header, *rows = [line.split() for line in result.stdout.splitlines()]
    assert header[:4] == ["day", "requests", "prompt", "tokens"]
    assert rows == [
        [f"{NOW - timedelta(days=10):%Y-%m-%d}", "1", "1,000", "600", "10", "0", "0.500"],
        [f"{NOW:%Y-%m-%d}", "2", "2,000", "1,200", "20", "1", "0.750"],
    ]
    assert "Li" in run("usage", "--by", "key").stdout


def test_usage_as_json(run: Run, key_id: str) -> None:
    rows = json.loads(run("usage", "--by", "key, day", "--project", "p", "--json").stdout)
    totals = {"requests": 1, "prompt_tokens": 1000, "cached_tokens": 600, "completion_tokens": 10}
    day = f"{NOW:%Y-%m-%d}"
    assert sorted(rows, key=lambda row: row["errors"]) == [
        {
            "day": day,
            "key_id": None,
            "key_name": None,
            **totals,
            "errors": 0,
            "mean_latency_s": 0.5,
        },
        {
            "day": day,
            "key_id": key_id,
            "key_name": "Li",
            **totals,
            "errors": 1,
            "mean_latency_s": 1,
        },
    ]


def test_usage_as_csv(run: Run, key_id: str) -> None:
    result = run("usage", "--by", "model,project", "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["model"], row["project"], row["requests"]) for row in rows] == [
        ('a "b", c', "q", "1"),
        ("demo", "p", "2"),
    ]
    assert list(rows[0])[2:] == [
        *("requests", "prompt_tokens", "cached_tokens", "completion_tokens"),
        *("errors", "mean_latency_s"),
    ]


def test_usage_of_some_days(run: Run, key_id: str) -> None:
    def count(*arguments: str) -> int:
        rows = json.loads(run("usage", "--by", "project", "--json", *arguments).stdout)
        return sum(row["requests"] for row in rows)

    old = f"{NOW - timedelta(days=10):%Y-%m-%d}"
    assert count() == 3
    assert count("--since", "7d") == 2
    assert count("--since", "11d") == 3
    assert count("--since", old) == 3
    assert count("--until", old) == 1
    assert count("--since", old, "--until", old, "--project", "p") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv", "--json"], "one of --csv and --json"),
        (["--by", "month"], "it is by day, key, model, project"),
        (["--since", "yesterday"], "--since must look like 7d or 2027-01-01"),
        (["--until", "9999999999d"], "--until must look like"),
    ],
)
def test_wrong_use_of_usage(run: Run, key_id: str, arguments: list[str], message: str) -> None:
    result = run("usage", *arguments)
    assert (result.exit_code, result.stdout) == (InvalidParameterError.exit_code, "")
    assert message in result.stderr
