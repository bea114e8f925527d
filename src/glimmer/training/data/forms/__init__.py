"""The forms of training data, and which of them a record has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from glimmer.errors import InvalidParameterError
from glimmer.training.data.example import Example, check
from glimmer.training.data.forms import (
    alpaca,
    conversations,
    fields,
    messages,
    preference,
    prompt_response,
    sharegpt,
)
from glimmer.training.data.forms.form import Columns, Form, Json

__all__ = ["FORMATS", "FORMS", "Columns", "Form", "find_form", "read_record"]

# In this order a record is asked: the first whose keys it has.
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        module.FORM.name: module.FORM
        for module in (messages, sharegpt, conversations, alpaca, preference, prompt_response)
    }
)
FORMATS = ("auto", *FORMS)


def find_form(name: str, record: Json, columns: Columns) -> Form:
    """The form that is named, or with "auto" the one whose keys a record has.

    Raises:
        InvalidParameterError: the record has the keys of no form, or not of the one named.
    """
    if name != "auto":
        form = FORMS[name]
        if not form.matches(record, columns):
            raise InvalidParameterError(
                f"the form {name} needs {_needs(form, columns)}, but {_found(record)}."
            )
        return form
    for form in FORMS.values():
        if form.matches(record, columns):
            return form
    needed = "; ".join(f"{form.name}: {_needs(form, columns)}" for form in FORMS.values())
    raise InvalidParameterError(
        f"no form of training data has these keys: {_found(record)}. Known are {needed}. Name the "
        "columns if this is a prompt and a response under other names."
    )


def read_record(form: Form, record: Json, columns: Columns) -> list[Example]:
    """The examples of a record, checked; raises InvalidParameterError."""
    fields.refuse_unread(record)
    examples = form.read(record, columns)
    keys = {*form.keys, columns.prompt, columns.response, columns.history}
    extra = MappingProxyType({k: v for k, v in record.items() if k not in keys})
    for example in examples:
        check(example)
    return [replace(example, extra=extra) for example in examples]


def _needs(form: Form, columns: Columns) -> str:
    if form is prompt_response.FORM:
        return f"{columns.prompt} and {columns.response}"
    return form.needs


def _found(record: Json) -> str:
    return f"the record has {', '.join(map(repr, record)) or 'none'}"[:300]
