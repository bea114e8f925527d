"""`glimmer data check` and `glimmer data convert` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from glimmer.cli import terminal
from tests.cli.conftest import Run
from tests.support import families
from tests.support.chats import tiny_chat

GOOD = {"prompt": "hello", "response": "world"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    architecture = families.tiny_architecture("chatglm3")
    return families.write_folder(
        tmp_path / "model", "chatglm3", "official", architecture,
        families.tiny_weights(architecture), tokenizer=True,
    )  # fmt: skip


def write(tmp_path: Path, *records: Any) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in records) + "\n", encoding="utf-8")
    return str(path)


def test_a_good_file(run: Run, tmp_path: Path, model: Path) -> None:
    file = write(tmp_path, GOOD, GOOD)
    result = run("data", "check", file, "--model", str(model), "--family", "chatglm3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "2 prompt-response" in result.stdout
    assert "none" in result.stdout
    report = json.loads(
        run("data", "check", file, "--model", str(model), "--family", "chatglm3", "--json").stdout
    )
    assert (report["examples"], report["sequences"], report["num_problems"]) == (2, 2, 0)
    assert report["tokens"] == sum([report["lengths"]["max"]] * 2)
    assert 0 < report["trained_tokens"] < report["tokens"]
    without = json.loads(run("data", "check", file, "--json").stdout)
    assert "tokens" not in without
    assert without["formats"] == {"prompt-response": 2}


def test_broken_lines_are_listed_and_end_with_1(run: Run, tmp_path: Path, model: Path) -> None:
    bad = {"prompt": "q", "response": ""}
    thought = {"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "\x1b[2Jhm"},
    ]}  # fmt: skip
    file = write(tmp_path, GOOD, bad, thought, GOOD)
    result = run("data", "check", file)
    assert result.exit_code == 1
    assert result.stdout.startswith("line 2 (record 2): 'response' is empty.\n")
    result = run("data", "check", file, "--model", str(model), "--family", "chatglm3")
    assert result.exit_code == 1
    second = result.stdout.splitlines()[1]
    assert second.startswith("line 3 (record 3): The assistant's message has the reasoning_content")
    assert "\x1b" not in result.stdout
    report = json.loads(
        run("data", "check", file, "--model", str(model), "--family", "chatglm3", "--json").stdout
    )
    assert [problem["line"] for problem in report["problems"]] == [2, 3]
    assert report["examples"] == 2


def test_keys_that_are_not_read_are_told(run: Run, tmp_path: Path) -> None:
    """Someone may have meant them: {"prompt", "response", "system"} trains no system message."""
    file = write(
        tmp_path, GOOD | {"system": "Be brief.", "\x1b[2J": 1}, GOOD | {"id": 1, "system": ""}
    )
    result = run("data", "check", file)
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("other keys"))
    assert "'system', '\\x1b[2J', 'id': not read" in line
    report = json.loads(run("data", "check", file, "--json").stdout)
    assert report["other_keys"] == {"system": 2, "\x1b[2J": 1, "id": 1}
    assert "other keys" not in run("data", "check", write(tmp_path, GOOD)).stdout


def test_too_long(run: Run, tmp_path: Path, model: Path) -> None:
    file = write(tmp_path, GOOD, {"prompt": "q", "response": "word " * 50})
    common = ("data", "check", file, "--model", str(model), "--family", "chatglm3", "--json",
              "--max-length", "40")  # fmt: skip
    cut = json.loads(run(*common).stdout)
    assert (cut["cut"], cut["skipped"], cut["lengths"]["max"]) == (1, 0, 40)
    skipped = json.loads(run(*common, "--too-long", "skip").stdout)
    assert (skipped["cut"], skipped["skipped"], skipped["sequences"]) == (0, 1, 1)


def test_what_is_trained_is_shown(run: Run, tmp_path: Path, model: Path) -> None:
    file = write(tmp_path, {"prompt": "a\x1b[2Jb", "response": "c\x07d"}, GOOD)
    result = run(
        "data", "check", file, "--model", str(model), "--family", "chatglm3", "--show", "1"
    )
    assert "line 1: " in result.stdout
    assert "line 2: " not in result.stdout
    assert "<|user|> ↵\n a␛[2Jb<|assistant|>⟦ ↵\n c␇d</s>⟧" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_terminal_shows_it_in_colour(
    run: Run, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tables() -> Console:
        return Console(force_terminal=True, width=80, markup=False, highlight=False)

    monkeypatch.setattr(terminal, "tables", tables)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    file = write(tmp_path, {"prompt": "a", "response": "b\x1b[31mc"})
    result = run(
        "data", "check", file, "--model", str(model), "--family", "chatglm3", "--show", "1"
    )
    assert "⟦" not in result.stdout
    assert "b␛[31mc" in result.stdout
    assert "\x1b[1;30;42m" in result.stdout  # bold black on green
    assert "\x1b[31m" not in result.stdout


def test_both_answers_of_a_preference_are_shown(run: Run, tmp_path: Path, model: Path) -> None:
    file = write(tmp_path, {"prompt": "q", "chosen": "good", "rejected": "bad"})
    result = run(
        "data", "check", file, "--model", str(model), "--family", "chatglm3", "--show", "1"
    )
    assert "line 1: chosen, " in result.stdout
    assert "line 1: rejected, " in result.stdout
    assert "preferences" in result.stdout


def test_wrong_use(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    for arguments, said in (
        (("check", file, "--show", "1"), "need --model"),
        (("check", file, "--max-length", "9"), "need --model"),
        (("check", file, "--format", "csv"), "--format"),
        (("check", file, "--model", "nonsense"), "no release of that name"),
        (("convert", file, str(tmp_path / "x"), "--to", "csv"), "--to"),
        (("convert", file, file, "--to", "alpaca"), "exists already"),
    ):
        result = run("data", *arguments)
        assert result.exit_code == 2, arguments
        assert said in result.stderr
    missing = str(tmp_path / "none.jsonl")
    for arguments in (("check", missing), ("convert", missing, missing + "2", "--to", "alpaca")):
        result = run("data", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "There is no file" in result.stderr


def test_the_commands_know_every_form() -> None:
    from glimmer.cli.data import FormatOption, TargetOption
    from glimmer.training.data import FORMATS, TARGETS

    assert set(get_args(get_args(FormatOption)[0])) == set(FORMATS)
    assert set(get_args(get_args(TargetOption)[0])) == set(TARGETS)


def test_a_file_of_nothing_is_no_training_data(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text("[]")
    result = run("data", "check", str(file))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "holds no record: there is nothing to train on" in result.stderr


def test_a_model_without_a_tokenizer(run: Run, tmp_path: Path) -> None:
    architecture = families.tiny_architecture("glm4_0414")
    bare = families.write_folder(
        tmp_path / "bare", "glm4_0414", "native", architecture,
        families.tiny_weights(architecture),
    )  # fmt: skip
    result = run("data", "check", write(tmp_path, GOOD), "--model", str(bare))
    assert result.exit_code == 1
    assert "holds no tokenizer" in result.stderr


def test_convert(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path, {"q": "hello", "a": "world"}, {"q": 1, "a": "x"})
    target = tmp_path / "out.json"
    columns = ("--prompt-column", "q", "--response-column", "a")
    result = run("data", "convert", file, str(target), "--to", "messages", *columns)
    assert result.exit_code == 1
    assert "line 2 (record 2): 'q' must be text" in result.stderr
    assert not target.exists()
    result = run("data", "convert", file, str(target), "--to", "messages", *columns, "--skip")
    assert (result.exit_code, result.stdout) == (0, f"{target}: 1 examples in the form messages\n")
    assert result.stderr == "left out: line 2 (record 2): 'q' must be text, but it is 1.\n"
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    assert json.loads(target.read_text()) == [{"messages": messages}]


def test_the_view_of_labels_joins_what_the_tokens_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    from glimmer.cli.label_view import labelled
    from glimmer.training.data import IGNORED, Encoded

    _, tokenizer = tiny_chat("glm4")
    ids = tokenizer.encode("猫€")  # no merges: a token a byte
    assert len(ids) == 6
    whole = labelled(Encoded(ids, [IGNORED] * 3 + ids[3:]), tokenizer, in_colour=False)
    assert whole.plain == "猫⟦€⟧"
