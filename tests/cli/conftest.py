"""Runs the command in this process, with a fake model and a standard input of the test's choice."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import glimmer
from glimmer import adapter_pool
from glimmer.cli.main import main
from tests.cli.fake_llm import FakeLLM


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    """The model that every command loads."""
    fake = FakeLLM()

    def open_fake(model: str, **options: object) -> FakeLLM:
        fake.options |= options
        return fake

    monkeypatch.setitem(vars(glimmer), "load", lambda model, **options: model)
    monkeypatch.setitem(vars(glimmer), "LLM", open_fake)
    monkeypatch.setattr(adapter_pool, "check_adapters", lambda *_, **__: None)
    return fake


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run(*arguments, stdin=bytes)``; without ``stdin`` there is an empty one."""

    def call(*arguments: str, stdin: bytes = b"") -> Result:
        file = tmp_path / "stdin"
        file.write_bytes(stdin)
        with io.TextIOWrapper(file.open("rb"), encoding="utf-8") as stream:
            monkeypatch.setattr("sys.stdin", stream)
            exit_code = main(list(arguments))
        captured = capsys.readouterr()
        return Result(exit_code, captured.out, captured.err)

    return call
