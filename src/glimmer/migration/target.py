"""Where a program moves to, and which model it will ask there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glimmer.catalogue import find_release
from glimmer.errors import InvalidParameterError
from glimmer.migration.hosted import HOSTED_MODELS, find_model, hosted_for

Direction = Literal["hosted", "local"]


@dataclass(frozen=True, slots=True)
class Target:
    """The side that a program moves to.

    Raises:
        InvalidParameterError: ``model`` is known to exist on the other side alone.
    """

    direction: Direction
    model: str | None = None
    """The model to be asked there; None for what each request names, or its nearest kin."""

    def __post_init__(self) -> None:
        if self.model is None:
            return
        here = find_release(self.model) is not None
        there = find_model(self.model) is not None
        if self.direction == "hosted" and here and not there:
            raise InvalidParameterError(
                f"{self.model!r} is a release for this machine; the hosted platform has no model "
                f"of that name. Its models are {', '.join(sorted(m.name for m in HOSTED_MODELS))}."
            )
        if self.direction == "local" and there and not here:
            raise InvalidParameterError(
                f"{self.model!r} is a model of the hosted platform; there is no release of that "
                "name for this machine. `glimmer list` names the releases."
            )

    def limits(self, asked: object) -> tuple[str, int | None, int | None] | None:
        """Name, context and longest answer of the model that will answer; None if unknown."""
        name = self.model or (asked if isinstance(asked, str) else None)
        if name is None:
            return None
        if self.direction == "local":
            release = find_release(name)
            return None if release is None else (release.name, release.context_length, None)
        model = find_model(name)
        if model is None and (release := find_release(name)) is not None:
            nearest = hosted_for(release.name)
            model = None if nearest is None else find_model(nearest)
        return None if model is None else (model.name, model.context, model.max_output)
