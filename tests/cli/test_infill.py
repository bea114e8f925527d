"""`glimmer infill`: the completed text on standard output, all else beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import glimmer
from tests.cli.conftest import Run
from tests.test_export import folder

TEXT = "The quick [MASK] jumps. 你好[gMASK]"
GREEDY = ["--temperature", "0", "--max-new-tokens", "5", "--threads", "1"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("infill"), "chatglm", "official", max_position=256)


@pytest.fixture(scope="module")
def expected(path: Path) -> str:
    params = glimmer.SamplingParams(temperature=0, max_new_tokens=5)
    return glimmer.LLM(glimmer.load(path, num_threads=1)).infill(TEXT, params).text


def test_a_text_is_filled(run: Run, path: Path, expected: str) -> None:
    for arguments, stdin in ((["-p", TEXT], b""), ([], TEXT.encode())):
        result = run("infill", str(path), *arguments, *GREEDY, stdin=stdin)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == expected + "\n"
        assert "[MASK] 1: (The answer ends here: it has reached max_new_tokens, 5.)" in (
            result.stderr
        )


def test_json(run: Run, path: Path, expected: str) -> None:
    result = run("infill", str(path), "-p", TEXT, "--json", "--method", "parts", *GREEDY)
    answer = json.loads(result.stdout)
    assert [fill["blank"] for fill in answer["fills"]] == ["[MASK]", "[gMASK]"]
    assert answer["finish_reason"] == answer["fills"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 10
    assert answer["text"].startswith("The quick")
    assert answer["text"].endswith(answer["fills"][1]["text"])


def test_wrong_use(run: Run, path: Path) -> None:
    result = run("infill", str(path), "-p", "no blank", *GREEDY)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no blank to fill" in result.stderr
    assert run("infill", str(path), "-p", TEXT, "--method", "both").exit_code == 2
    assert run("infill", str(path), "-p", "", *GREEDY).exit_code == 2
