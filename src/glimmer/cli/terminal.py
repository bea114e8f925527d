"""What is written where: answers to standard output, all else to standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# A control character that reaches a terminal is a command to it: it may rewrite what was shown
# before, or answer into the keyboard buffer. They are shown as the pictures that Unicode has for
# them; C1 has none. A carriage return goes: it would only hide the line that it is in.
_PICTURES = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n\r"},
    ord("\r"): None,
    0x7F: "\N{SYMBOL FOR DELETE}",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
}


def printable(text: str) -> str:
    """``text`` without power over a terminal; new lines and tabs stay."""
    return text.translate(_PICTURES)


def write(text: str) -> None:
    """Write what a model or a file says to standard output: harmless to a terminal, else as is."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def messages() -> Console:
    """For people: notices, statistics and errors, on standard error."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)


def tables() -> Console:
    """For tables on standard output; in a file or pipe no line is folded or cut."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 10_000
    return Console(width=width, markup=False, highlight=False, emoji=False)
