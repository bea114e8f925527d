"""The documents speak of what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from glimmer.cli.main import app
from tests.support.demo_model import demo_gguf

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
READMES = [ROOT / "README.md", ROOT / "README_zh.md"]


def code(page: Path) -> str:
    """What the page sets as code: fenced blocks and `pieces`, a piece a line."""
    text = page.read_text(encoding="utf-8")
    pieces = re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
    return "\n".join(block or piece for block, piece in pieces)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (\S+)", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", code(page)))
    assert named <= targets
    assert page not in READMES or named >= {"chat", "test"}


@pytest.mark.parametrize("readme", READMES, ids=lambda page: page.name)
def test_commands_exist(readme: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert set(re.findall(r"\bglimmer ([a-z]+)", code(readme))) == set(commands)


@pytest.mark.parametrize("readme", READMES, ids=lambda page: page.name)
def test_the_example_runs(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo_gguf()
    (example,) = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(readme), "exec"), {})
    assert "Usage(prompt_tokens=" in capsys.readouterr().out
