"""What an answer may look like: as the caller says it, and as the engine sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from glimmer.errors import InvalidParameterError

ConstraintKind = Literal["json_schema", "regex", "grammar", "choice"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that an answer must have. Made by one of the functions below."""

    kind: ConstraintKind
    value: str
    """A schema or the choices as JSON, a regular expression, or a grammar."""

    @classmethod
    def json_schema(cls, schema: Mapping[str, object] | bool | str) -> Constraint:
        """JSON that a schema describes; ``{}`` or True for any JSON."""
        return cls("json_schema", _json_text(schema, "schema"))

    @classmethod
    def json_object(cls) -> Constraint:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression matches from beginning to end, in Rust's syntax without
        look-around and back-references."""
        return cls("regex", pattern)

    @classmethod
    def grammar(cls, text: str) -> Constraint:
        """A context-free grammar in the Lark dialect of llguidance, from the rule ``start``."""
        return cls("grammar", text)

    @classmethod
    def choice(cls, options: Sequence[str]) -> Constraint:
        """One of these texts.

        Raises:
            InvalidParameterError: no option, or one that is empty or no text.
        """
        if (
            isinstance(options, str)
            or not options
            or not all(isinstance(option, str) and option for option in options)
        ):
            raise InvalidParameterError(
                f"The options of a choice must be one or more non-empty texts, but they are "
                f"{options!r}."
            )
        return cls("choice", json.dumps(list(options), ensure_ascii=False))


def _json_text(value: object, what: str) -> str:
    try:
        return json.dumps(json.loads(value) if isinstance(value, str) else value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameterError(f"The {what} is not JSON: {error}.") from error


class TokenConstraint(Protocol):
    """A form, followed token by token along one answer."""

    @property
    def is_finished(self) -> bool:
        """Whether the answer has the form and nothing can be added to it."""

    @property
    def has_begun(self) -> bool:
        """Whether the form holds from here on; before that, a thought may say anything."""

    def forced(self) -> list[int]:
        """Tokens that are bound to follow, or likely so: good drafts."""

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, from the first on, the answer may go on with."""

    def fill(self, drafts: Sequence[int], masks: npt.NDArray[np.int32]) -> None:
        """The tokens allowed next, and after each of some drafts that are allowed: a row of
        ``masks`` ``[len(drafts) + 1, words]`` each, a bit per token.

        Raises:
            GenerationError: the form cannot be followed any further.
        """

    def accept(self, token_id: int) -> None:
        """The answer goes on with this token.

        Raises:
            GenerationError: the form does not allow it.
        """
