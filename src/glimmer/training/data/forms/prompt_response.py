"""prompt, response and history, as in the official ptuning of ChatGLM-6B and ChatGLM2.

The last answer alone is trained, as there.
"""

from __future__ import annotations

from typing import Any

from glimmer.chat import Message
from glimmer.training.data.example import Example, last_only
from glimmer.training.data.forms import fields, limits
from glimmer.training.data.forms.form import Columns, Form, Json

NAME = "prompt-response"


def _matches(record: Json, columns: Columns) -> bool:
    return columns.prompt in record and columns.response in record


def _read(record: Json, columns: Columns) -> list[Example]:
    messages = [
        *fields.history(record, columns.history),
        Message("user", fields.text(record, columns.prompt)),
        Message("assistant", fields.text(record, columns.response)),
    ]
    return [Example(tuple(messages), trained=last_only(messages))]


def _write(example: Example) -> dict[str, Any]:
    limits.check_texts(example, NAME)
    limits.check_trained(example, NAME, last=True)
    if example.tools:
        raise limits.refuse(NAME, "tools")
    system, rounds = limits.rounds(example, NAME)
    if system:
        raise limits.refuse(NAME, "a system message")
    *history, (prompt, response) = rounds
    if example.rejected is not None:
        if history:
            raise limits.refuse(NAME, "earlier rounds of a preference")
        return {"prompt": prompt, "chosen": response, "rejected": example.rejected.content}
    record: dict[str, Any] = {"prompt": prompt, "response": response}
    return {**record, "history": history} if history else record


FORM = Form(
    name=NAME,
    keys=frozenset({"prompt", "response", "history"}),
    needs="prompt and response",
    matches=_matches,
    read=_read,
    write=_write,
)
