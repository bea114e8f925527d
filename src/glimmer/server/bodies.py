"""What the requests of all dialects are made of. Fields that a dialect does not name are accepted,
and named in a header of the answer.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

_MAX_ENTRIES = 4096
MAX_STOP_CHARS = 1000
T = TypeVar("T")
Count = Annotated[int, Field(ge=1, le=1 << 30)]
JsonObject = dict[str, Any]
Items = Annotated[list[T], Field(fail_fast=True)]
"""Refused at the first that is wrong: a body holds millions, and each would be told."""
Stop = Annotated[str, Field(max_length=MAX_STOP_CHARS)]


def _refuse_many(value: Any) -> Any:
    """Before the entries are looked at, for the same reason."""
    if isinstance(value, dict) and len(value) > _MAX_ENTRIES:
        raise PydanticCustomError(
            "too_long", f"There may be {_MAX_ENTRIES} entries, but there are more"
        )
    return value


Few = BeforeValidator(_refuse_many)


class Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    @property
    def ignored(self) -> list[str]:
        """Fields that say nothing to us."""
        return sorted(self.model_extra or ())
