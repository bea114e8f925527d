"""What a step costs by its number of rows, as steps have shown."""

from __future__ import annotations

from collections.abc import Hashable

_ROW = 0.25
"""What one more row adds to a step of one, before any was timed."""
_LEAST = 0.01
_AGE = 64
"""Timed steps after which a size that none of them had is no longer known, and may be tried anew:
what made it dear may be over."""
_CURVE = 64


class StepCosts:
    """The unit is a step of one row.

    Steps of different contexts take different times, but more rows make them longer by much the
    same factor. So what is learned is that factor: a step with drafts is set against plain steps of
    the same sequences.
    """

    def __init__(self) -> None:
        self._company: Hashable = None
        self._plain_s: float | None = None
        self._known: dict[int, tuple[float, int]] = {}
        self._num_timed = 0
        self._curve = self._drawn()

    def learn(self, company: Hashable, num_plain: int, num_rows: int, seconds: float) -> None:
        """A step took so long. ``num_plain`` of its rows, one for each sequence, were no drafts;
        ``company`` tells whether the sequences are those of the step before."""
        if company != self._company:
            self._company, self._plain_s = company, None
        if num_rows == num_plain:
            self._plain_s = seconds if self._plain_s is None else _towards(self._plain_s, seconds)
        elif self._plain_s is not None:
            self._num_timed += 1
            cost, expected = self.of(num_plain) * seconds / self._plain_s, self.of(num_rows)
            # The first of its size touches new memory: it is half believed.
            new = num_rows not in self._known
            cost = (expected + cost) / 2 if new else _towards(expected, cost)
            self._known[num_rows] = cost, self._num_timed
            self._curve = self._drawn()

    def knows(self, company: Hashable) -> bool:
        """Whether a plain step of these sequences was timed, so that one with drafts would tell
        something."""
        return company == self._company and self._plain_s is not None

    def of(self, num_rows: int) -> float:
        """Of a step with so many rows."""
        beyond = num_rows - len(self._curve)
        if beyond < 0:
            return self._curve[num_rows]
        return self._curve[-1] + (beyond + 1) * self._slope

    def _drawn(self) -> list[float]:
        """Costs by number of rows: straight between the sizes that are known, never falling, and
        beyond them as steep as they are on the whole."""
        oldest = self._num_timed - _AGE
        self._known = {rows: x for rows, x in self._known.items() if x[1] >= oldest}
        curve = [0.0, 1.0]
        for rows, (cost, _) in sorted(self._known.items()):
            first, last = len(curve), curve[-1]
            step = max((cost - last) / (rows - first + 1), _LEAST)
            curve += [last + step * n for n in range(1, rows - first + 2)]
        num_known = len(curve) - 1
        self._slope = (curve[-1] - 1) / (num_known - 1) if num_known > 1 else _ROW
        curve += [curve[-1] + self._slope * n for n in range(1, _CURVE - num_known)]
        return curve


def _towards(known: float, value: float) -> float:
    """What is known, moved towards a new value: little towards one that is far above it, since that
    was another program's doing."""
    return known + (0.2 if value < 2 * known else 0.01) * (value - known)
