"""Exit codes, error messages and what the command costs before it does anything."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import glimmer
from glimmer.errors import CheckpointError
from tests.cli.conftest import Run
from tests.cli.fake_llm import FakeLLM

FAKE_GLIMMER = [sys.executable, "-m", "tests.cli.fake_llm"]
ROOT = Path(__file__).parents[2]


def shell(script: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``script`` with "$@" being the command."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *FAKE_GLIMMER],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
    )


def test_version(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"glimmer {glimmer.__version__}\n")


def test_help_lists_the_commands(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("chat", "generate", "show", "env"):
        assert command in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"], ["--version"]])
def test_help_imports_no_engine(arguments: list[str]) -> None:
    script = (
        "import sys; from glimmer.cli.main import main; main(sys.argv[1:]); "
        "print(*sorted(m for m in sys.modules if '.' not in m or m.startswith('glimmer')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "typer" in imported
    heavy = {"numpy", "tokenizers", "prompt_toolkit", "glimmer.llm", "glimmer.native"}
    assert not imported & heavy


def test_without_the_help_there_is_no_rich_either() -> None:
    script = "import sys, glimmer.cli.main; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chta"], "No such command 'chta'"),
        (["chat", "--nonsense"], "No such option: --nonsense"),
        (["chat", "--threads", "many"], "--threads"),
        (["chat", "--weights", "int3"], "--weights"),
        (["generate"], "Missing argument 'MODEL'"),
        (["chat", "-p", "hello", "--temperature", "300"], "temperature must be between 0"),
        (["chat", "-p", "hello", "--top-p", "nan"], "top_p must be"),
    ],
)
def test_wrong_use_is_told_in_a_line_and_ends_with_2(
    run: Run, llm: FakeLLM, arguments: list[str], said: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert not llm.asked


def test_a_wrong_file_ends_with_1_and_cannot_steer_the_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(model: str, **options: object) -> None:
        raise CheckpointError("tensor '\x1b[2J' [bold]is[/bold] broken")

    monkeypatch.setitem(vars(glimmer), "load", load)
    result = run("chat", "-p", "hello")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: tensor '␛[2J' [bold]is[/bold] broken\n"


def test_a_failing_system_call_is_an_error_not_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(model: str, **options: object) -> None:
        raise PermissionError(13, "Permission denied", model)

    monkeypatch.setitem(vars(glimmer), "load", load)
    result = run("chat", "secret.gguf", "-p", "hello")
    assert (result.exit_code, result.stderr) == (1, "error: secret.gguf: Permission denied\n")


def test_too_little_memory_is_an_error_not_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(model: str, **options: object) -> None:
        raise MemoryError

    monkeypatch.setitem(vars(glimmer), "load", load)
    result = run("chat", "-p", "hello")
    assert result.exit_code == 1
    assert "memory" in result.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = shell(
        '"$@" chat -p "slow story" </dev/null 2>/dev/null | head -c 4; exit "${PIPESTATUS[0]}"'
    )
    assert (done.stdout, done.stderr, done.returncode) == ("You ", "", 1)


def test_a_full_disk_is_told() -> None:
    done = shell('"$@" chat -p hello </dev/null >/dev/full')
    assert done.returncode == 1
    assert done.stderr.endswith("error: No space left on device\n")


def test_closed_streams() -> None:
    assert shell('"$@" chat -p hello <&-').stdout == "You said: hello \n"
    assert shell('"$@" chat -p hello </dev/null 2>&-').stdout == "You said: hello \n"
    no_output = shell('"$@" chat -p hello </dev/null >&-')
    assert (no_output.returncode, no_output.stderr) == (1, "error: Standard output is closed.\n")


def test_a_terminal_without_the_characters_still_gets_an_answer() -> None:
    done = shell(
        '"$@" chat -p 你好 </dev/null',
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.stdout == "You said: \\u4f60\\u597d \n"
