"""Training data in another form: the same when it is read again, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from glimmer.chat import Message, ToolCall
from glimmer.errors import InvalidParameterError, TrainingDataError
from glimmer.training.data import TARGETS, Example, convert, read
from glimmer.training.data.converting import _difference, write_record
from glimmer.training.data.forms import FORMS, Columns, read_record
from tests.support import golden
from tests.training.data.test_encoding import TOOLS, examples

PLAIN = {"instruction": "i", "input": "n", "output": "o", "id": 7, "source": {"a": [1]}}
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def write(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


@settings(max_examples=40)
@given(examples(calls=True, thoughts=True))
def test_messages_hold_everything(example: Example) -> None:
    record = write_record(FORMS["messages"], example)
    (again,) = read_record(FORMS["messages"], json.loads(json.dumps(record)), Columns())
    calls = [[(c.name, c.arguments) for c in m.tool_calls] for m in example.messages]
    assert [[(c.name, c.arguments) for c in m.tool_calls] for m in again.messages] == calls
    for one, other in zip(example.messages, again.messages, strict=True):
        assert (one.role, one.content, one.reasoning, one.name) == (
            other.role, other.content, other.reasoning, other.name,
        )  # fmt: skip
    assert again.trained == example.trained
    assert [tool.function for tool in again.tools] == [tool.function for tool in example.tools]


@pytest.mark.parametrize("to", TARGETS)
@settings(max_examples=40)
@given(examples(calls=True, thoughts=True))
def test_what_is_written_is_the_same_or_refused(to: str, example: Example) -> None:
    try:
        record = write_record(FORMS[to], example)
    except InvalidParameterError:
        return  # what is refused is told below
    (again,) = read_record(FORMS[to], record, Columns())
    assert [m.content for m in again.messages] == [m.content for m in example.messages]
    assert [m.role for m in again.messages] == [m.role for m in example.messages]
    assert again.trained == example.trained


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_plain_question_goes_into_every_form(tmp_path: Path, to: str, suffix: str) -> None:
    source, target = write(tmp_path / "in.jsonl", PLAIN, PLAIN), tmp_path / f"out.{suffix}"
    report = convert(source, target, to)
    assert (report.num_examples, report.num_problems) == (2, 0)
    text = target.read_text(encoding="utf-8")
    records = json.loads(text) if suffix == "json" else [json.loads(t) for t in text.splitlines()]
    assert all(record["id"] == 7 and record["source"] == {"a": [1]} for record in records)
    wanted = (Message("user", "i\nn"), Message("assistant", "o"))
    assert [example.messages for example in read(target)] == [wanted, wanted]


CALLS = Message("assistant", tool_calls=(ToolCall("f", "{}"), ToolCall("g", "{}")))
RESULTS = (Message("tool", "1", name="f"), Message("tool", "2", name="g"))
U, A = Message("user", "q"), Message("assistant", "a")


@pytest.mark.parametrize(
    ("to", "messages", "trained", "said"),
    [
        ("alpaca", [U, A, U, A], "0001", "which answers are trained: it always trains every"),
        ("prompt-response", [U, A, U, A], "0101", "it always trains the last answer alone"),
        ("prompt-response", [Message("system", "s"), U, A], "001", "a system message"),
        ("alpaca", [U, U, A], "001", "user and assistant do not take turns"),
        ("alpaca", [U, CALLS, *RESULTS, A], "01001", "tool calls and their results"),
        ("alpaca", [U, Message("assistant", "a", reasoning="hm")], "01", "reasoning_content"),
        ("sharegpt", [U, Message("assistant", "a", metadata="f")], "01", "metadata"),
        ("sharegpt", [Message("user", "q", name="Ann"), A], "01", "the name of a speaker"),
        ("sharegpt", [U, CALLS, *RESULTS, A], "01001", "does not take every second turn"),
        ("sharegpt", [U, Message("assistant", "t", tool_calls=CALLS.tool_calls[:1]),
                      RESULTS[0], A], "0101", "text beside a tool call"),
        ("conversations", [U, CALLS, *RESULTS, A], "01001", "several calls in one message"),
        ("conversations", [U, Message("assistant", tool_calls=CALLS.tool_calls[:1])], "01",
         "a call without its result"),
        ("conversations", [Message("system", ""), U, CALLS], "001", "several calls"),
        ("sharegpt", [Message("system", ""), U, A], "001", "its messages one by one"),
        ("conversations", [U, A, A], "010", None),
    ],
)  # fmt: skip
def test_what_a_form_cannot_express_is_refused(
    to: str, messages: list[Message], trained: str, said: str | None
) -> None:
    example = Example(tuple(messages), trained=tuple(flag == "1" for flag in trained))
    if said is None:
        assert write_record(FORMS[to], example)
        return
    with pytest.raises(InvalidParameterError, match=f"the form {to} cannot express") as caught:
        write_record(FORMS[to], example)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"messages": (U, Message("assistant", "b"))}, "message 1 (assistant)"),
        ({"messages": (U, A, U)}, "its messages one by one"),
        ({"messages": (U, replace(A, tool_calls=CALLS.tool_calls))}, "message 1 (assistant)"),
        ({"messages": (U, replace(A, tools=TOOLS))}, "message 1 (assistant)"),
        ({"trained": (False, False)}, "which answers are trained"),
        ({"tools": TOOLS}, "its tools"),
        ({"rejected": None}, "that it is a preference"),
        ({"rejected": Message("assistant", "worse")}, "the rejected answer"),
        ({"line": 7, "record": 9}, None),
    ],
)
def test_what_is_read_back_is_compared(change: dict[str, Any], said: str | None) -> None:
    example = Example((U, A), (), (False, True), Message("assistant", "bad"))
    found = _difference(example, replace(example, **change))
    assert found is None if said is None else said in (found or "")


@pytest.mark.parametrize("to", TARGETS)
def test_preferences(to: str) -> None:
    example = Example((U, A), trained=(False, True), rejected=Message("assistant", "bad"))
    if to == "conversations":
        with pytest.raises(InvalidParameterError, match="cannot express preferences"):
            write_record(FORMS[to], example)
        return
    record = write_record(FORMS[to], example)
    form = FORMS["preference"] if to == "prompt-response" else FORMS[to]
    (again,) = read_record(form, record, Columns())
    assert (again.messages, again.rejected, again.trained) == (
        example.messages, example.rejected, example.trained,
    )  # fmt: skip


def test_keys_that_would_change_their_meaning_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "q", "response": "a", "system": "be rude"})
    with pytest.raises(TrainingDataError, match="key 'system' has a meaning of its own"):
        convert(source, tmp_path / "out.jsonl", "alpaca")
    assert list(tmp_path.iterdir()) == [source]


def test_keys_that_would_change_the_form_are_refused(tmp_path: Path) -> None:
    record = {"prompt": "q", "response": "a", "conversations": []}
    source = write(tmp_path / "in.jsonl", record)
    with pytest.raises(TrainingDataError, match="make it a record of the form conversations"):
        convert(source, tmp_path / "out.jsonl", "alpaca", format="prompt-response")


def test_refused_records_are_told_by_line_and_nothing_is_written(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "system", "content": "s"}, *CHAT["messages"]]}
    source = write(tmp_path / "in.jsonl", CHAT, chat, "broken", CHAT)
    target = tmp_path / "out.jsonl"
    with pytest.raises(TrainingDataError, match="2 of its records") as caught:
        convert(source, target, "prompt-response")
    assert "line 2 (record 2): the form prompt-response cannot express" in str(caught.value)
    assert "line 3 (record 3): it must be a JSON object" in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]
    report = convert(source, target, "prompt-response", skip=True)
    assert (report.num_examples, report.num_problems) == (2, 2)
    assert len(list(read(target))) == 2
    with pytest.raises(InvalidParameterError, match="exists already"):
        convert(source, target, "messages")
    convert(source, target, "messages", skip=True, overwrite=True)
    assert len(list(read(target, "messages"))) == 3


def test_a_file_of_nothing_is_not_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", "broken")
    with pytest.raises(TrainingDataError, match="no record of it can be written"):
        convert(source, tmp_path / "out.jsonl", "alpaca", skip=True)
    with pytest.raises(InvalidParameterError, match="but not as 'preference'"):
        convert(source, tmp_path / "out.jsonl", "preference")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("to", ["messages", "conversations", "sharegpt"])
def test_published_calls_survive(tmp_path: Path, to: str) -> None:
    path = golden.FOLDER.parent / "data/llamafactory_demo/glaive_toolcall_zh_demo.json"
    if not path.exists():
        pytest.skip(f"no file {path}")
    target = tmp_path / "out.jsonl"
    # Two of its observations follow no call; that form lets every second turn be the user's.
    assert convert(path, target, to).num_examples == 300
    before = [[(m.role, m.content) for m in e.messages] for e in read(path)]
    assert [[(m.role, m.content) for m in e.messages] for e in read(target)] == before
