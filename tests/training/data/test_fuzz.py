"""Whatever a record holds, it is an example or it is refused: nothing else is ever raised."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from glimmer.errors import TrainingDataError
from glimmer.training.data import FORMATS, TARGETS, Report, convert, encode, read
from tests.support.chats import tiny_chat

_KEYS = """
messages conversations tools functions prompt response history instruction input output system
instances chosen rejected preferred_output non_preferred_output role content from value name
parameters observation metadata loss weight tool_calls function arguments tool_call_id
function_call reasoning_content type text id extra
"""
KEYS = st.sampled_from(_KEYS.split())
WORDS = st.sampled_from(
    ["user", "assistant", "system", "tool", "observation", "human", "gpt", "function_call", "f", "",
     '{"name": "f", "arguments": {"x": 1}}', '[{"name": "f"}]', "[]", "function", "text", "你好"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
SPEAKERS = st.sampled_from(["user", "assistant", "system", "tool", "observation", "human", "gpt"])
TURNS = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": SPEAKERS, "from": SPEAKERS, "content": WORDS, "value": WORDS,
                      "tool_calls": VALUES, "parameters": VALUES, "name": WORDS, "loss": VALUES,
                      "observation": VALUES, "metadata": WORDS}
    ),
    max_size=4,
)  # fmt: skip
RECORDS = st.dictionaries(KEYS, VALUES, max_size=6) | st.fixed_dictionaries(
    {}, optional={"messages": TURNS, "conversations": TURNS, "tools": VALUES, "chosen": TURNS,
                  "rejected": TURNS | WORDS, "prompt": TURNS | WORDS, "response": WORDS}
)  # fmt: skip


@settings(max_examples=100)
@given(st.lists(RECORDS, min_size=1, max_size=3), st.sampled_from(FORMATS))
def test_any_record_is_an_example_or_a_problem(
    tmp_path: Path, records: list[Any], format: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    report = Report()
    found = list(read(path, format, report=report))
    lines = {example.line for example in found} | {problem.line for problem in report.problems}
    assert lines == set(range(1, len(records) + 1))
    for name in ("chatglm", "glm45"):
        chat, tokenizer = tiny_chat(name)
        for example in found:
            with suppress(TrainingDataError):
                assert encode(example, chat, tokenizer, 10_000)
    for to in TARGETS:
        with suppress(TrainingDataError):  # none of the records can be written
            written = convert(path, tmp_path / to, to, format=format, skip=True, overwrite=True)
            again = Report()
            assert len(list(read(tmp_path / to, report=again))) == written.num_examples
            assert not again.problems


@settings(max_examples=200)
@given(st.binary(max_size=200) | st.text('[]{},:"\\\n ab1', max_size=60).map(str.encode))
def test_any_bytes_are_records_or_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(data)
    report = Report()
    try:
        assert not list(read(path, report=report))
    except TrainingDataError:
        return
    assert report.num_problems or data.strip() in (b"[]", b"[ ]") or b"[" in data
