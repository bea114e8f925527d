"""What a form of training data is: how a record is read, and how an example is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from glimmer.training.data.example import Example

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """What a record of the form prompt-response calls its parts."""

    prompt: str = "prompt"
    response: str = "response"
    history: str = "history"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    name: str
    keys: Set[str]
    """The keys of a record that this form reads; all others are carried along."""
    needs: str
    """The keys by which it is told, as an error says it."""
    matches: Callable[[Json, Columns], bool]
    """Whether a record is of this form, by its keys."""
    read: Callable[[Json, Columns], list[Example]]
    """The examples of a record; raises InvalidParameterError. One, but for a list of tasks."""
    write: Callable[[Example], dict[str, Any]] | None = field(default=None)
    """The record of an example, without ``extra``; raises InvalidParameterError for what the form
    cannot express. None where nothing is written in this form."""
