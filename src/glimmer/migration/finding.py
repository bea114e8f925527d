"""What a check found, where, and what to do; and a file's findings while it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from glimmer.migration.rules import Rule
    from glimmer.migration.target import Direction

Severity = Literal["error", "warning", "note"]

_MAX_PLACES = 20
_MAX_DETAIL = 120
_LINE_BY_LINE = ("unreadable-line",)
"""Rules of which each place must be mended by itself, in recordings too."""


@dataclass(frozen=True, slots=True)
class Finding:
    rule: str
    severity: Severity
    where: str
    """A file, or "ledger"."""
    line: int | None
    """Of the first place."""
    detail: str
    """What was found there: names and numbers, never a message's text or a key."""
    why: str
    fix: str
    count: int = 1
    """Places in this file, the first among them."""


class FileFindings:
    """Findings of one file. Its size does not grow with the file's.

    Of recorded requests the same finding is kept once, with its first line and how often it came;
    of source code each line has its own. A rule that finds ever new things is cut off and counted.
    """

    def __init__(self, where: str, direction: Direction, *, by_line: bool = False) -> None:
        self.where = where
        self.direction: Direction = direction
        self._by_line = by_line
        self._found: dict[tuple[str, str, int | None], Finding] = {}
        self._places: dict[str, int] = {}

    def add(
        self,
        rule: Rule,
        detail: str,
        line: int | None = None,
        fix: str | None = None,
        times: int = 1,
    ) -> None:
        """Note that ``rule`` found something; nothing happens if it is of the other direction."""
        if rule.to not in ("both", self.direction):
            return
        detail = _short(detail)
        by_line = self._by_line or rule.id in _LINE_BY_LINE
        key = (rule.id, detail, line if by_line else None)
        if key not in self._found:
            if self._places.get(rule.id, 0) >= _MAX_PLACES:
                detail, fix = "and more of that kind", None
                key = (rule.id, detail, None)
            self._places[rule.id] = self._places.get(rule.id, 0) + 1
        known = self._found.get(key)
        self._found[key] = Finding(
            rule.id,
            rule.severity,
            self.where,
            known.line if known else line,
            detail,
            rule.why,
            known.fix if known else fix or rule.fix,
            known.count + times if known else times,
        )

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()
        self._places.clear()

    def sorted(self) -> list[Finding]:
        """By line; among those of one line the grave ones first."""
        ranks = {"error": 0, "warning": 1, "note": 2}
        return sorted(self._found.values(), key=lambda f: (f.line or 0, ranks[f.severity]))


def _short(text: str) -> str:
    # Half of a surrogate pair is valid in JSON's escapes and in no encoding.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _MAX_DETAIL else text[: _MAX_DETAIL - 4] + " ..."
