"""Every form of training data: what is read from it, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from glimmer.chat import Message, ToolCall
from glimmer.errors import InvalidParameterError, TrainingDataError
from glimmer.training.data import FORMATS, Columns, Example, Report, read
from glimmer.training.data.report import Problem
from tests.support import golden

TOOL = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}
CALL = Message("assistant", tool_calls=(ToolCall("weather", '{"city": "北京"}'),))
U, A = (lambda text: Message("user", text)), (lambda text: Message("assistant", text))


def read_one(tmp_path: Path, record: Any, format: str = "auto", **options: Any) -> Example:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    (example,) = read(path, format, **options)
    return example


def problem_of(tmp_path: Path, record: Any, format: str = "auto") -> str:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record))
    report = Report()
    assert not list(read(path, format, report=report))
    (problem,) = report.problems
    return problem.what


@pytest.mark.parametrize(
    ("format", "record", "messages", "trained"),
    [
        ("prompt-response", {"prompt": "q", "response": "a"}, [U("q"), A("a")], "01"),
        (
            "prompt-response",
            {"prompt": "q", "response": "a", "history": [["x", "y"]], "id": 7},
            [U("x"), A("y"), U("q"), A("a")],
            "0001",
        ),
        (
            "conversations",
            {"conversations": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "loss": False},
                {"role": "user", "content": "r"},
                {"role": "assistant", "content": "b", "loss": True},
            ]},
            [Message("system", "s"), U("q"), A("a"), U("r"), A("b")],
            "00001",
        ),
        (
            "conversations",
            {"conversations": [
                {"role": "user", "content": "q"},
                {"role": "tool", "name": "weather", "parameters": {"city": "北京"},
                 "observation": {"t": 3}},
                {"role": "assistant", "content": "a"},
            ], "tools": [TOOL]},
            [U("q"), CALL, Message("tool", '{"t": 3}', name="weather"), A("a")],
            "0101",
        ),
        (
            "conversations",  # a thought and the call behind it are one message
            {"conversations": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "I look."},
                {"role": "tool", "name": "f", "parameters": {}, "observation": "r"},
                {"role": "assistant", "content": "a"},
            ]},
            [
                U("q"), Message("assistant", "I look.", tool_calls=(ToolCall("f", "{}"),)),
                Message("tool", "r", name="f"), A("a"),
            ],
            "0101",
        ),
        (
            "conversations",  # but not where only one of them is trained
            {"conversations": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "I look.", "loss": False},
                {"role": "tool", "name": "f", "parameters": {}, "observation": "r"},
                {"role": "assistant", "content": "a"},
            ]},
            [
                U("q"), A("I look."), Message("assistant", tool_calls=(ToolCall("f", "{}"),)),
                Message("tool", "r", name="f"), A("a"),
            ],
            "00101",
        ),
        (
            "conversations",  # as ChatGLM3 writes a call
            {"conversations": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "metadata": "f", "content": "tool_call(a=1)"},
                {"role": "observation", "content": "r"},
                {"role": "assistant", "content": "a"},
            ]},
            [
                U("q"), Message("assistant", "tool_call(a=1)", metadata="f"),
                Message("tool", "r"), A("a"),
            ],
            "0101",
        ),
        (
            "messages",
            {"messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "a", "weight": 0},
                {"role": "user", "content": "r"},
                {"role": "assistant", "content": None, "weight": 1, "tool_calls": [
                    {"id": "1", "type": "function",
                     "function": {"name": "weather", "arguments": '{"city": "北京"}'}}]},
                {"role": "tool", "tool_call_id": "1", "content": "3"},
                {"role": "assistant", "content": "b", "reasoning_content": "think"},
            ], "tools": [{"type": "function", "function": TOOL}]},
            [
                U("q"), A("a"), U("r"),
                Message("assistant", tool_calls=(ToolCall("weather", '{"city": "北京"}', "1"),)),
                Message("tool", "3", tool_call_id="1"),
                Message("assistant", "b", reasoning="think"),
            ],
            "000101",
        ),
        (
            "messages",  # OpenAI's older calls
            {"messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": None,
                 "function_call": {"name": "weather", "arguments": '{"city": "北京"}'}},
                {"role": "function", "name": "weather", "content": "3"},
                {"role": "assistant", "content": "a"},
            ], "functions": [TOOL]},
            [U("q"), CALL, Message("tool", "3", name="weather"), A("a")],
            "0101",
        ),
        (
            "alpaca",
            {"instruction": "i", "input": "n", "output": "o", "system": "s",
             "history": [["x", "y"]]},
            [Message("system", "s"), U("x"), A("y"), U("i\nn"), A("o")],
            "00101",
        ),
        (
            "alpaca",
            {"instruction": "i", "input": "", "output": "o", "system": "", "history": []},
            [U("i"), A("o")],
            "01",
        ),
        (
            "sharegpt",
            {"conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call",
                 "value": '{"name": "weather", "arguments": {"city": "北京"}}'},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "a", "weight": None},
            ], "system": "s", "tools": json.dumps([TOOL])},
            [Message("system", "s"), U("q"), CALL, Message("tool", "3", name="weather"), A("a")],
            "00101",
        ),
        (
            "sharegpt",
            {"conversations": [
                {"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0},
                {"from": "human", "value": "r"}, {"from": "gpt", "value": "b"},
            ]},
            [U("q"), A("a"), U("r"), A("b")],
            "0001",
        ),
    ],
)  # fmt: skip
def test_forms(
    tmp_path: Path, format: str, record: Any, messages: list[Message], trained: str
) -> None:
    for named in ("auto", format):
        report = Report()
        example = read_one(tmp_path, record, named, report=report)
        assert dict(report.formats) == {format: 1}
        assert list(example.messages) == messages
        assert example.trained == tuple(flag == "1" for flag in trained)
        assert [tool.name for tool in example.tools] == (
            ["weather"] if "tools" in record or "functions" in record else []
        )
        assert example.rejected is None
        assert (example.line, example.record) == (1, 1)
    assert dict(example.extra) == ({"id": 7} if "id" in record else {})


@pytest.mark.parametrize(
    ("format", "record"),
    [
        ("preference", {"prompt": "q", "chosen": "good", "rejected": "bad"}),
        ("preference", {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }),
        ("preference", {
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
        }),
        ("preference", {
            "prompt": "q",
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
        }),
        ("preference", {
            "input": {"messages": [{"role": "user", "content": "q"}], "tools": []},
            "preferred_output": [{"role": "assistant", "content": "good"}],
            "non_preferred_output": [{"role": "assistant", "content": "bad"}],
        }),
        ("alpaca", {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}),
        ("alpaca", {"instruction": "q", "output": "good", "rejected": "bad"}),
        ("alpaca", {"instruction": "q", "output": "fair", "chosen": "good", "rejected": "bad"}),
        ("sharegpt", {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        }),
        ("messages", {
            "messages": [
                {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"},
            ],
            "rejected": "bad",
        }),
        ("messages", {
            "messages": [{"role": "user", "content": "q"}],
            "chosen": {"role": "assistant", "content": "good"},
            "rejected": {"role": "assistant", "content": "bad", "weight": 1},
        }),
    ],
)  # fmt: skip
def test_preferences(tmp_path: Path, format: str, record: Any) -> None:
    report = Report()
    example = read_one(tmp_path, record, report=report)
    assert dict(report.formats) == {format: 1}
    assert example.messages == (U("q"), A("good"))
    assert example.rejected == A("bad")
    assert example.trained == (False, True)
    assert example.with_rejected().messages == (U("q"), A("bad"))


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_system_message_beside_the_others(tmp_path: Path, key: str) -> None:
    record = {"system": "Be brief.", key: [ASK, SAY]}
    example = read_one(tmp_path, record)
    assert example.messages == (Message("system", "Be brief."), U("q"), A("a"))
    assert example.trained == (False, False, True)
    assert read_one(tmp_path, record | {"system": ""}).messages == (U("q"), A("a"))
    twice = record | {key: [{"role": "system", "content": "s"}, ASK, SAY]}
    assert "its first message is the system's too" in problem_of(tmp_path, twice)


def test_columns_of_other_names(tmp_path: Path) -> None:
    record = {"content": "q", "summary": "a", "before": [["x", "y"]], "id": 1}
    columns = Columns("content", "summary", "before")
    example = read_one(tmp_path, record, columns=columns)
    assert example.messages == (U("x"), A("y"), U("q"), A("a"))
    assert dict(example.extra) == {"id": 1}
    assert "'content'" in problem_of(tmp_path, record)


def test_a_seed_task_is_an_example_per_instance(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    instances = [{"input": "1", "output": "a"}, {"input": "", "output": "b"}]
    path.write_text(json.dumps({"instruction": "i", "instances": instances}))
    assert [e.messages for e in read(path)] == [(U("i\n1"), A("a")), (U("i"), A("b"))]


ASK = {"role": "user", "content": "q"}
SAY = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": "q", "answer": "a"}, "no form of training data has these keys"),
        ({}, "the record has none"),
        ({"prompt": 3, "response": "a"}, "'prompt' must be text, but it is 3"),
        ({"prompt": "", "response": "a"}, "'prompt' is empty"),
        ({"prompt": "q", "response": None}, "'response' is empty"),
        ({"prompt": "q", "response": "a", "history": ["x"]}, "history[0] must be a pair of texts"),
        ({"prompt": "q", "response": "a", "history": [["x", ""]]}, "history[0] must be a pair"),
        ({"prompt": "q", "response": "a", "history": "x"}, "'history' must be a list of pairs"),
        ({"prompt": "q", "response": "a", "images": ["a.png"]}, "read text only"),
        ({"prompt": "q", "response": "a", "kto_tag": False}, "KTO is not trained here"),
        ({"instruction": "i"}, "'output' is missing"),
        ({"instruction": "i", "rejected": "b"}, "'chosen' must be text or one message"),
        ({"instruction": "", "output": "o"}, "message 0 (user) is empty"),
        ({"instruction": "i", "output": "o", "tools": "nonsense"}, "'tools' must be JSON"),
        ({"instruction": "i", "output": "o", "tools": {"a": 1}}, "must be a list of tools"),
        ({"instruction": "i", "output": "o", "tools": ["text"]}, "Tool 0 must be a mapping"),
        ({"messages": []}, "at least one message"),
        ({"messages": "x"}, "at least one message"),
        ({"messages": [7]}, "messages[0] must be an object, but it is 7"),
        ({"messages": [ASK, {"role": "robot", "content": "a"}]}, "Message 1: role must be one of"),
        ({"messages": [ASK, {**SAY, "colour": 1}]}, "Message 1 has the unknown key 'colour'"),
        ({"messages": [ASK, {**SAY, "weight": 0.5}]}, "messages[1]: 'weight' must be true or"),
        ({"messages": [{**ASK, "weight": 1}, SAY]}, "messages[0] (user) asks for a loss"),
        ({"messages": [ASK, {**SAY, "weight": 0}]}, "no answer is trained"),
        ({"messages": [ASK, {**SAY, "refusal": "no"}]}, "'refusal', which is not trained"),
        ({"messages": [ASK]}, "ends with role user"),
        ({"messages": [SAY]}, "the first message behind the system's must be the user's"),
        ({"messages": [ASK, {**SAY, "content": ""}]}, "an answer of the assistant is empty"),
        ({"messages": [ASK, {"role": "tool", "content": "r"}, SAY]}, "a tool's result behind"),
        ({"messages": [{**ASK, "reasoning_content": "hm"}, SAY]}, "only the assistant's can"),
        ({"messages": [ASK], "rejected": "bad"}, "ends with role user"),
        ({"messages": [ASK, SAY], "rejected": ""}, "an answer of the assistant is empty"),
        ({"messages": [ASK, SAY], "rejected": ASK}, "'rejected' must be the assistant's"),
        ({"messages": [ASK, SAY], "rejected": [SAY, SAY]}, "one message of the assistant"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "bing", "value": "a"}]},
         "'from' must be one of human, user, gpt"),
        ({"conversations": [{"from": "human", "value": "q", "id": 1}]}, "unknown key 'id'"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call",
                                                              "value": "weather()"}]},
         "must be JSON, but it is 'weather()'"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call",
                                                              "value": '{"tool": 1}'}]},
         "a function_call must be"),
        ({"conversations": [ASK, {"role": "gpt", "content": "a"}]}, "'role' must be one of system"),
        ({"conversations": [ASK, {**SAY, "loss": "no"}]}, "'loss' must be true or false"),
        ({"conversations": [ASK, {"role": "tool", "name": "f", "parameters": {}}]},
         "a call needs its result"),
        ({"conversations": [ASK, {"role": "tool", "name": "f", "parameters": [],
                                  "observation": ""}]}, "'parameters' must be an object"),
        ({"conversations": [ASK, {"role": "tool", "parameters": {}, "observation": ""}]},
         "'name' is missing"),
        ({"prompt": "q", "chosen": "a"}, "no form of training data"),
        ({"input": "q", "preferred_output": "a", "non_preferred_output": "b"},
         "'input' must be an object with messages"),
        ({"prompt": "q", "chosen": "a", "rejected": 3}, "'rejected' must be text or one message"),
        ({"chosen": [ASK, SAY], "rejected": [SAY, SAY]}, "differ before it"),
        ({"prompt": "z", "chosen": [ASK, SAY], "rejected": [ASK, SAY]}, "no user says that"),
    ],
)  # fmt: skip
def test_broken_records_are_refused(tmp_path: Path, record: Any, said: str) -> None:
    assert said in problem_of(tmp_path, record)


def test_a_named_form_refuses_the_others(tmp_path: Path) -> None:
    said = problem_of(tmp_path, {"messages": [ASK, SAY]}, "alpaca")
    assert said.startswith("the form alpaca needs instruction")
    assert "the record has 'messages'" in said
    with pytest.raises(InvalidParameterError, match="format must be one of auto, messages"):
        read(tmp_path / "none", "csv")
    assert FORMATS[0] == "auto"


def test_all_problems_are_collected(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = json.dumps({"prompt": "q", "response": "a"})
    path.write_text(f'{good}\n{{"prompt": 1, "response": ""}}\n\nnonsense\n{good}\n')
    report = Report()
    assert [e.line for e in read(path, report=report)] == [1, 5]
    assert [(p.line, p.record) for p in report.problems] == [(2, 2), (4, 3)]
    assert (report.num_problems, report.num_examples) == (2, 2)
    examples = read(path)
    assert [next(examples).line, next(examples).line] == [1, 5]
    with pytest.raises(TrainingDataError, match="2 of its records cannot be used") as caught:
        next(examples)
    assert "line 2 (record 2): 'prompt' must be text" in str(caught.value)
    assert "line 4 (record 3): it is not JSON" in str(caught.value)


def test_a_long_list_of_problems_is_shortened_where_it_is_raised() -> None:
    report = Report()
    for line in range(1, 31):
        report.add(line, line, "broken")
    with pytest.raises(TrainingDataError, match="and 10 more") as caught:
        report.raise_problems("file")
    assert "line 20" in str(caught.value)
    assert "line 21" not in str(caught.value)
    assert str(Problem(3, 2, "x")) == "line 3 (record 2): x"


@pytest.mark.parametrize(
    ("file", "format", "count"),
    [
        ("llamafactory_demo/identity.json", "alpaca", 91),
        ("llamafactory_demo/glaive_toolcall_en_demo.json", "sharegpt", 300),
        ("llamafactory_demo/glaive_toolcall_zh_demo.json", "sharegpt", 300),
        ("chatglm6b_improve/data_sample.jsonl", "prompt-response", 100),
        ("belle_seed/zh_seed_tasks.json", "alpaca", 175),
        ("self_instruct_seed/seed_tasks.jsonl", "alpaca", 175),
    ],
)
def test_published_files(file: str, format: str, count: int) -> None:
    path = golden.FOLDER.parent / "data" / file
    if not path.exists():
        pytest.skip(f"no file {path}")
    report = Report()
    assert sum(1 for _ in read(path, report=report)) == count
    assert report.problems == []
    assert dict(report.formats) == {format: count}


def test_columns_of_a_published_file() -> None:
    path = golden.FOLDER.parent / "data" / "gsm8k" / "test.jsonl"
    if not path.exists():
        pytest.skip(f"no file {path}")
    assert sum(1 for _ in read(path, columns=Columns("question", "answer"))) == 1319


def test_the_examples_of_the_documentation(tmp_path: Path) -> None:
    """Each JSON block of docs/training-data.md is of the form that stands before it."""
    page = Path(__file__).parents[3] / "docs" / "training-data.md"
    found: list[str] = []
    for block in re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        while block := block.lstrip():
            record, end = json.JSONDecoder().raw_decode(block)
            block = block[end:]
            report = Report()
            example = read_one(tmp_path, record, report=report)
            found += report.formats
            assert (example.rejected is not None) == ("rejected" in record)
    assert found == [
        "prompt-response", "conversations", "messages", "alpaca", "sharegpt",
        "preference", "messages", "alpaca", "sharegpt",
    ]  # fmt: skip
