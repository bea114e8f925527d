"""The line that a person types into: editing keys, history, completion of commands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from glimmer.cli import terminal


class PromptLine:
    """Reads what a person says. Enter sends it, Alt-Enter or Esc Enter begins a new line."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_key_bindings(),
            history=_open_history(),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
        )

    def read(self, draft: str = "") -> str:
        """One entry; ``draft`` is there to begin with.

        Raises:
            KeyboardInterrupt: Ctrl-C while there was no text.
            EOFError: Ctrl-D while there was no text.
        """
        return self._session.prompt(default=draft)


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        # Bytes that are not UTF-8 arrive as lone surrogates, which nothing behind here can encode.
        text = buffer.text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if text != buffer.text:
            buffer.text = text
        buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c")
    def _clear_or_interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return bindings


def _open_history() -> History:
    """What was typed in earlier conversations; only its owner may read it."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(base) / "glimmer" / "chat_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
    except OSError as error:
        terminal.messages().print(
            f"note: what you type is not remembered: {path}: {error.strerror}.", style="yellow"
        )
        return InMemoryHistory()
    return FileHistory(path)
