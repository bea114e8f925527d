"""Changes to an answer's text, piece by piece: what may still change is held back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TextFilter(Protocol):
    def push(self, text: str) -> str: ...
    def finish(self) -> str: ...


class Strip:
    """``str.strip``: white space at the end waits for what follows it."""

    def __init__(self) -> None:
        self._begun = False
        self._space = ""

    def push(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        return kept

    def finish(self) -> str:
        return ""


class Replace:
    """``str.replace``: the beginning of what is looked for waits for the rest."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._held = ""

    def push(self, text: str) -> str:
        *done, rest = (self._held + text).split(self._old)
        held = next(
            n for n in range(min(len(rest), len(self._old) - 1), -1, -1)
            if self._old.startswith(rest[len(rest) - n :])
        )  # fmt: skip
        self._held = rest[len(rest) - held :]
        return self._new.join([*done, rest[: len(rest) - held]])

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class Chain:
    """One filter after the other."""

    def __init__(self, filters: Sequence[TextFilter]) -> None:
        self._filters = filters

    def push(self, text: str) -> str:
        for one in self._filters:
            text = one.push(text)
        return text

    def finish(self) -> str:
        text = ""
        for one in self._filters:
            text = one.push(text) + one.finish()
        return text
