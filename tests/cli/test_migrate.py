"""`glimmer migrate check`: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def recording(tmp_path: Path) -> str:
    file = tmp_path / "requests.jsonl"
    request = {"messages": [{"role": "user", "content": "\x1b[2J"}], "model": "\x1b[2J"}
    lines = [request | {"stop": ["a", "b"]}, request, request | {"user": "u"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    return str(file)


def test_findings_are_told_with_lines_and_fixes(run: Run, recording: str) -> None:
    result = run("migrate", "check", recording)
    assert (result.exit_code, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert lines[0] == recording
    assert "     1  error    stop has 2 entries (stop-words)" in lines
    assert lines[2].startswith("        ")
    assert any("the model '\\x1b[2J', 3 times" in line for line in lines)
    assert lines[-1] == "1 file with 3 recorded requests: 2 errors, 1 note."
    assert "\x1b" not in result.stdout


def test_as_json(run: Run, recording: str) -> None:
    result = run("migrate", "check", recording, "--json", "--model", "glm-4.7")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (report["to"], report["model"], report["num_requests"]) == ("hosted", "glm-4.7", 3)
    rules = [finding["rule"] for finding in report["findings"]]
    assert sorted(rules) == ["model-hosted", "stop-words", "user"]
    assert set(report["findings"][0]) >= {"severity", "where", "line", "detail", "why", "fix"}


def test_notes_alone_are_no_failure(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("os.environ['OPENAI_API_KEY']")
    result = run("migrate", "check", str(tmp_path))
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "1 file: 1 note.")
    assert run("migrate", "check", str(tmp_path), "--to", "local").exit_code == 0
    file.write_text("")
    assert run("migrate", "check", str(file)).stdout == "1 file: nothing to change.\n"


def test_the_ledger(run: Run, tmp_path: Path) -> None:
    from glimmer.server.database import Database

    file = str(tmp_path / "server.db")
    missing = run("migrate", "check", "--ledger", "--database", file)
    assert missing.exit_code == 1
    assert "no ledger" in missing.stderr
    Database(file).close()
    result = run("migrate", "check", "--ledger", "--database", file)
    assert (result.exit_code, result.stdout) == (0, "0 files: nothing to change.\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--ledger"),
        (["nothing-here.jsonl"], "no file or folder"),
        ([".", "--to", "mars"], "--to"),
        ([".", "--model", "chatglm3-6b"], "no model of that name"),
        (["--ledger", "--to", "local"], "hosted platform alone"),
    ],
)
def test_wrong_use_ends_with_2(run: Run, arguments: list[str], said: str) -> None:
    result = run("migrate", "check", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_a_long_advice_is_folded_on_a_terminal(
    run: Run, recording: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from glimmer.cli import terminal

    monkeypatch.setattr(terminal, "tables", lambda: Console(width=60, highlight=False))
    lines = run("migrate", "check", recording).stdout.splitlines()
    advice = [line for line in lines if line.startswith("        ")]
    assert len(advice) > 6
    assert max(map(len, advice)) <= 60
