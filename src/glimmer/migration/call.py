"""One request as far as it is known: from a recording whole, from source code in part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from glimmer.migration.addresses import Endpoint
from glimmer.migration.target import Target


class Unknown:
    """A value that only a running program would know."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()


@dataclass(frozen=True, slots=True)
class Call:
    endpoint: Endpoint
    parameters: Mapping[str, Any]
    """JSON values, with UNKNOWN where source code computes one."""
    line: int | None = None
    lines: Mapping[str, int] = field(default_factory=dict)
    """Of single parameters, where they have their own."""
    is_whole: bool = True
    """Whether a parameter that is not here is not sent."""

    def line_of(self, parameter: str) -> int | None:
        return self.lines.get(parameter, self.line)


class Hit(NamedTuple):
    parameter: str
    detail: str
    fix: str | None = None
    """Where the rule's own fix can be made more exact."""


Detector = Callable[[Call, Target], Iterator[Hit]]
