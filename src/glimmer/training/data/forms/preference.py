"""prompt, chosen and rejected, as TRL reads them: texts, or lists of messages.

Without a prompt, or with the text of one, lists may hold the whole conversation: what both begin
with is the prompt. OpenAI's names for the same are read as well: input (messages, tools),
preferred_output and non_preferred_output.
"""

from __future__ import annotations

from glimmer.chat import Message, to_messages
from glimmer.errors import InvalidParameterError
from glimmer.training.data.example import Example, last_only
from glimmer.training.data.forms import fields
from glimmer.training.data.forms.form import Columns, Form, Json

NAME = "preference"


def _matches(record: Json, columns: Columns) -> bool:
    if "preferred_output" in record and "non_preferred_output" in record:
        return True
    return "chosen" in record and "rejected" in record and columns.response not in record


def _read(record: Json, columns: Columns) -> list[Example]:
    if "preferred_output" in record:
        record, columns = _renamed(record), Columns()
    prompt = record.get(columns.prompt)
    chosen, rejected = record["chosen"], record["rejected"]
    if isinstance(prompt, list):
        before = to_messages(fields.objects(record, columns.prompt))
    elif isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) > 1:
        before, chosen, rejected = _whole(chosen, rejected)
        asked = [message.content for message in before if message.role == "user"]
        if prompt is not None and prompt not in asked:
            raise InvalidParameterError(
                f"{columns.prompt!r} is {fields.shown(prompt)}, but no user says that in what "
                "'chosen' and 'rejected' begin with."
            )
    else:
        before = [Message("user", fields.text(record, columns.prompt))]
    if "system" in record:
        before = [*fields.system(record), *before]
    messages = (*before, fields.one_answer(chosen, "chosen"))
    worse = fields.one_answer(rejected, "rejected")
    return [Example(messages, fields.tools(record, "tools"), last_only(messages), worse)]


def _renamed(record: Json) -> Json:
    """OpenAI's record under TRL's names."""
    asked = record.get("input")
    if not isinstance(asked, dict):
        raise InvalidParameterError(
            f"'input' must be an object with messages, but it is {fields.shown(asked)}."
        )
    return {
        "prompt": fields.objects(asked, "messages"),
        "tools": asked.get("tools"),
        "chosen": record["preferred_output"],
        "rejected": record["non_preferred_output"],
    }


def _whole(
    chosen: list[object], rejected: list[object]
) -> tuple[list[Message], list[object], list[object]]:
    """What two conversations begin with, and the one answer in which they differ."""
    if chosen[:-1] != rejected[:-1]:
        raise InvalidParameterError(
            "'chosen' and 'rejected' must be one conversation that differs in its last message "
            "alone, but they differ before it."
        )
    return to_messages(chosen[:-1]), chosen[-1:], rejected[-1:]  # type: ignore[arg-type]


FORM = Form(
    name=NAME,
    keys=frozenset(
        {"prompt", "chosen", "rejected", "system", "tools", "input", "preferred_output",
         "non_preferred_output"}
    ),
    needs="chosen and rejected (with prompt)",
    matches=_matches,
    read=_read,
)  # fmt: skip
