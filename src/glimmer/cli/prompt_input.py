"""Where a single prompt comes from: an option, standard input, or both."""

from __future__ import annotations

import os
import select
import sys

from glimmer.cli import terminal
from glimmer.errors import UsageError

_PATIENCE_S = 2.0


def read_question(prompt: str | None) -> str | None:
    """The prompt option, then piped text as its document; None if there is a person to ask.

    Raises:
        UsageError: there is no text at all, or it is not UTF-8.
    """
    piped = _read_piped()
    if prompt is None and piped is None:
        return None
    return _checked("\n\n".join(part for part in (prompt, piped) if part))


def read_prompt(prompt: str | None) -> str:
    """The prompt option as it stands, else piped text. Raises UsageError, as ``read_question``."""
    return _checked(prompt if prompt is not None else _read_piped() or "")


def _read_piped() -> str | None:
    """All of standard input, without its last line break; None if a person types there."""
    if sys.stdin is None:
        return ""
    if sys.stdin.isatty():
        return None
    _tell_if_waiting()
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"Standard input must be UTF-8 text, but byte {error.start} is "
            f"0x{error.object[error.start]:02x}. Convert it, for example with iconv."
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def _tell_if_waiting() -> None:
    """Say so when nothing comes: an inherited pipe that nobody writes to looks like a hang."""
    if os.name != "posix":
        return
    ready, _, _ = select.select([sys.stdin], [], [], _PATIENCE_S)
    if not ready:
        terminal.messages().print(
            "Waiting for text on standard input (none to come? add </dev/null).", style="dim"
        )


def _checked(text: str) -> str:
    if not text.strip():
        raise UsageError("The prompt is empty. Give one with -p TEXT, or pipe text in.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(
            "The prompt must be UTF-8 text, but it holds bytes that are not."
        ) from None
    return text
