"""Training data in another form: nothing is lost, or the record is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glimmer.chat import Message, ToolSpec
from glimmer.checkpoints.atomic import new_file
from glimmer.errors import InvalidParameterError, TrainingDataError
from glimmer.training.data.example import Example
from glimmer.training.data.forms import FORMS, Columns, Form, find_form, read_record
from glimmer.training.data.forms.fields import named
from glimmer.training.data.reading import read
from glimmer.training.data.report import Report

TARGETS = tuple(name for name, form in FORMS.items() if form.write is not None)
_COLUMNS = Columns()
_ADVICE = "Mend them, take another form, or leave them out (--skip); nothing was written."


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str,
    *,
    format: str = "auto",
    columns: Columns = _COLUMNS,
    skip: bool = False,
    overwrite: bool = False,
) -> Report:
    """Write the examples of ``source`` in the form ``to``, one of ``TARGETS``.

    ``target`` is a JSON list if its name ends with ".json", else JSONL. Each record is read back
    and compared: calls keep their names and arguments, but not the spaces of their JSON, and the
    ids of calls only where the form has a place for them. Keys of a record that say nothing of the
    conversation are kept. With ``skip``, records that are broken or that the form cannot express
    are left out, and the report tells of them; else nothing is written then.

    Raises:
        InvalidParameterError: an unknown form, or ``target`` exists.
        TrainingDataError: the source cannot be read, records are refused, or none is left.
        OutputError: writing failed.
    """
    if to not in TARGETS:
        raise InvalidParameterError(
            f"A file is written as {', '.join(TARGETS)}, but not as {to!r}."
        )
    report, target = Report(), Path(target)
    start, between, end = ("[\n", ",\n", "\n]\n") if target.suffix == ".json" else ("", "\n", "\n")
    written = 0
    with new_file(target, overwrite=overwrite) as stream:
        for example in read(source, format, columns=columns, report=report):
            try:
                record = write_record(FORMS[to], example)
            except InvalidParameterError as error:
                report.num_examples -= 1
                report.add(example.line, example.record, str(error))
                continue
            text = json.dumps(record, ensure_ascii=False)
            stream.write(((between if written else start) + text).encode("utf-8"))
            written += 1
        if not skip:
            report.raise_problems(source, _ADVICE)
        if not written:
            raise TrainingDataError(
                f"{source}: no record of it can be written as {to}, so nothing was."
            )
        stream.write(end.encode())
    return report


def write_record(form: Form, example: Example) -> dict[str, Any]:
    """The record of an example; raises InvalidParameterError if it would not be read back as the
    same."""
    assert form.write is not None
    written = form.write(example)
    if twice := sorted(example.extra.keys() & form.keys):
        raise InvalidParameterError(
            f"its key {twice[0]!r} has a meaning of its own in the form {form.name}; rename it."
        )
    record = {**written, **example.extra}
    reader = find_form("auto", record, _COLUMNS)
    if reader is not form and not (reader.name == "preference" and example.rejected is not None):
        raise InvalidParameterError(
            f"its other keys make it a record of the form {reader.name}: "
            f"{', '.join(map(repr, example.extra))}."
        )
    (again,) = read_record(reader, record, _COLUMNS)
    if (lost := _difference(example, again)) is not None:
        raise InvalidParameterError(f"the form {form.name} cannot express {lost}.")
    return record


def _difference(one: Example, other: Example) -> str | None:
    """What of an example is not the same in another; None if nothing."""
    if len(one.messages) != len(other.messages):
        return "its messages one by one"
    # An id does no more than to tell whose result a result is.
    for place, pair in enumerate(zip(named(one.messages), named(other.messages), strict=True)):
        if _content(pair[0]) != _content(pair[1]):
            return f"message {place} ({pair[0].role}) as it is"
    if (one.rejected is None) != (other.rejected is None):
        return "that it is a preference"
    if (
        one.rejected is not None
        and other.rejected is not None
        and _content(one.rejected) != _content(other.rejected)
    ):
        return "the rejected answer as it is"
    if one.trained != other.trained:
        return "which answers are trained"
    if _tools(one.tools) != _tools(other.tools):
        return "its tools as they are"
    return None


def _content(message: Message) -> tuple[Message, list[tuple[str, object]], list[Mapping[str, Any]]]:
    """What counts of a message."""
    plain = replace(message, tool_calls=(), tool_call_id=None)
    calls: list[tuple[str, object]] = [(c.name, c.parsed()) for c in message.tool_calls]
    return plain, calls, _tools(message.tools)


def _tools(tools: Sequence[ToolSpec]) -> list[Mapping[str, Any]]:
    """A function may stand alone or as the "function" of a tool."""
    return [tool.given if tool.function is None else tool.function for tool in tools]
