"""The command as a process on a pseudo-terminal: what only a real terminal shows."""

import contextlib
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
# Bracketed paste is switched on: the prompt reads keys. Ctrl-D before that reaches nobody.
READING = "\x1b[?2004h"


class Terminal:
    """A `glimmer` process and the screen and keyboard it talks to."""

    def __init__(self, arguments: list[str], state_home: Path) -> None:
        self._main, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (24, 80))
        environment = {
            **os.environ,
            "TERM": "xterm",
            "XDG_STATE_HOME": str(state_home),
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.fake_llm", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.screen = ""

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def expect(self, text: str) -> None:
        """Wait until ``text`` has appeared after what was expected before."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.screen:
            assert self._read(deadline), f"never saw {text!r} in {self.screen!r}"
        self.screen = self.screen.partition(text)[2]

    def exit_code(self) -> int:
        """Wait for the end; what was still printed is added to the screen."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        return self._process.wait(timeout=PATIENCE_S)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._main)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._main], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._main, 65536)
        except OSError:  # how Linux says that the process has closed its side
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)


@pytest.fixture
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """`glimmer chat` on a terminal; parametrize it for other arguments."""
    with contextlib.closing(Terminal(getattr(request, "param", ["chat"]), tmp_path)) as opened:
        yield opened


def test_a_conversation(terminal: Terminal) -> None:
    terminal.expect("/help tells the commands")
    terminal.type("hello\r")
    terminal.expect("You said: hello")
    terminal.type("/nonsense\r")
    terminal.expect("There is no command /nonsense")
    terminal.type("/exit\r")
    assert terminal.exit_code() == 0


def test_ctrl_c_stops_the_answer_not_the_program(terminal: Terminal) -> None:
    terminal.expect("/help tells the commands")
    terminal.type("slow story\r")
    terminal.expect("slow story You said: slow")
    terminal.type("\x03")
    terminal.expect("(Stopped.")
    terminal.type("hello\r")
    terminal.expect("You said: hello")
    terminal.expect(READING)
    terminal.type("\x03")
    terminal.expect("Ctrl-D or /exit leaves")
    terminal.expect(READING)
    terminal.type("\x04")
    assert terminal.exit_code() == 0


def test_a_model_cannot_steer_the_terminal(terminal: Terminal) -> None:
    terminal.expect("/help tells the commands")
    terminal.type("colour\r")
    terminal.expect("␛[31mred\\x9b0m")
    terminal.expect(READING)
    terminal.type("\x04")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize("terminal", [["chat", "-p", "colour"]], indirect=True)
def test_neither_can_it_in_one_answer(terminal: Terminal) -> None:
    terminal.expect("␛[31mred\\x9b0m")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize("terminal", [["chat", "-p", "slow story"]], indirect=True)
def test_ctrl_c_ends_a_single_answer_quietly(terminal: Terminal) -> None:
    terminal.expect("You said: slow")
    terminal.type("\x03")
    assert terminal.exit_code() == 130
    assert "Traceback" not in terminal.screen


@pytest.mark.parametrize("terminal", [["chat", "--json"]], indirect=True)
def test_a_conversation_in_json_is_wrong_use(terminal: Terminal) -> None:
    terminal.expect("Ask once with -p TEXT")
    assert terminal.exit_code() == 2
