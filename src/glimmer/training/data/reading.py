"""Files of training data as examples, one at a time; what is broken is collected by its number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from glimmer.errors import InvalidParameterError
from glimmer.training.data.example import Example
from glimmer.training.data.forms import FORMATS, Columns, find_form, read_record
from glimmer.training.data.records import read_records
from glimmer.training.data.report import Report

_DEFAULT_COLUMNS = Columns()


def read(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    columns: Columns = _DEFAULT_COLUMNS,
    report: Report | None = None,
) -> Iterator[Example]:
    """The examples of a file of JSONL or JSON (a list), in the order of the file.

    ``format`` is one of ``FORMATS``; "auto" tells the form of each record by its keys. ``columns``
    names the parts of the form prompt-response. The file may be of any size: one record is held.

    Broken records are left out. With a ``report`` they are collected there; without one, the end of
    the file raises if there were any.

    Raises:
        InvalidParameterError: an unknown format.
        ModelNotFoundError: no such file.
        TrainingDataError: the file cannot be read at all, or records of it are broken.
    """
    if format not in FORMATS:
        raise InvalidParameterError(
            f"The format must be one of {', '.join(FORMATS)}, but it is {format!r}."
        )
    return _read(path, format, columns, report)


def _read(
    path: str | os.PathLike[str], format: str, columns: Columns, given: Report | None
) -> Iterator[Example]:
    report = Report() if given is None else given
    for record in read_records(path):
        if record.problem is not None:
            report.add(record.line, record.number, record.problem)
            continue
        try:
            form = find_form(format, record.value, columns)
            examples = read_record(form, record.value, columns)
        except InvalidParameterError as error:
            report.add(record.line, record.number, str(error))
            continue
        report.num_examples += len(examples)
        report.formats[form.name] += len(examples)
        for example in examples:
            yield replace(example, line=record.line, record=record.number)
    if given is None:
        report.raise_problems(path)
