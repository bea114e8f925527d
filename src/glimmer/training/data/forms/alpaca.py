"""alpaca: instruction, input, output, history, system, tools, as LLaMA-Factory reads them.

All answers are trained, those of the history too. With rejected it is a preference, whose better
answer is chosen, or else output. A seed task of Self-Instruct (instruction, instances) is an
example per instance.
"""

from __future__ import annotations

from typing import Any

from glimmer.chat import Message
from glimmer.training.data.example import Example, all_answers, last_only
from glimmer.training.data.forms import fields, limits
from glimmer.training.data.forms.form import Columns, Form, Json
from glimmer.training.data.forms.sharegpt import tools_text

NAME = "alpaca"


def _matches(record: Json, _columns: Columns) -> bool:
    return "instruction" in record


def _read(record: Json, _columns: Columns) -> list[Example]:
    if "output" not in record and "instances" in record:
        return [
            _example({"instruction": record["instruction"], **task})
            for task in fields.objects(record, "instances")
        ]
    return [_example(record)]


def _example(record: Json) -> Example:
    given = [fields.optional_text(record, key) for key in ("instruction", "input")]
    question = Message("user", "\n".join(part for part in given if part))
    before = [*fields.system(record), *fields.history(record, "history"), question]
    tools = fields.tools(record, "tools")
    if record.get("rejected") or ("rejected" in record and "output" not in record):
        better = "output" if "output" in record and not record.get("chosen") else "chosen"
        chosen = fields.one_answer(record.get(better), better)
        rejected = fields.one_answer(record["rejected"], "rejected")
        messages = (*before, chosen)
        return Example(messages, tools, last_only(messages), rejected)
    messages = (*before, Message("assistant", fields.text(record, "output")))
    return Example(messages, tools, all_answers(messages))


def _write(example: Example) -> dict[str, Any]:
    limits.check_texts(example, NAME)
    limits.check_trained(example, NAME, last=False)
    system, rounds = limits.rounds(example, NAME)
    *history, (instruction, output) = rounds
    record: dict[str, Any] = {"instruction": instruction, "input": ""}
    if example.rejected is not None:
        record.update(chosen=output, rejected=example.rejected.content)
    else:
        record["output"] = output
    if system:
        record["system"] = system
    if history:
        record["history"] = history
    if example.tools:
        record["tools"] = tools_text(example)
    return record


FORM = Form(
    name=NAME,
    keys=frozenset(
        {"instruction", "input", "output", "history", "system", "tools", "instances", "chosen",
         "rejected"}
    ),
    needs="instruction (with output, or with chosen and rejected)",
    matches=_matches,
    read=_read,
    write=_write,
)  # fmt: skip
