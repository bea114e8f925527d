"""What is wrong with a file of training data: every broken record, by its number."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from glimmer.errors import TrainingDataError

_MAX_KEPT = 100_000
_MAX_SHOWN = 20
_ADVICE = "Mend or remove them; `glimmer data check` lists them all."


@dataclass(frozen=True, slots=True)
class Problem:
    line: int
    """Of the file, from 1, where the record begins."""
    record: int
    """Which record, from 1; blank lines are none."""
    what: str

    def __str__(self) -> str:
        return f"line {self.line} (record {self.record}): {self.what}"


@dataclass(slots=True)
class Report:
    """Filled while a file is read; complete when the last example was taken."""

    problems: list[Problem] = field(default_factory=list)
    """The first 100,000; ``num_problems`` counts them all."""
    num_problems: int = 0
    num_examples: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    """How many examples came in each form."""

    def add(self, line: int, record: int, what: str) -> None:
        self.num_problems += 1
        if len(self.problems) < _MAX_KEPT:
            self.problems.append(Problem(line, record, what))

    def raise_problems(self, path: object, advice: str = _ADVICE) -> None:
        """Raise TrainingDataError if there are any; its message shows the first 20."""
        if not self.num_problems:
            return
        shown = "".join(f"\n  {problem}" for problem in self.problems[:_MAX_SHOWN])
        more = self.num_problems - min(len(self.problems), _MAX_SHOWN)
        rest = f"\n  ... and {more} more" if more else ""
        raise TrainingDataError(
            f"{path}: {self.num_problems} of its records cannot be used. {advice}{shown}{rest}"
        )
