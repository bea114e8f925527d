"""`--engine torch`: the same answers as without it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, run
from tests.support.adapters import file_tensors, random_modules, write_lora
from tests.test_export import folder, network

__all__ = ["run"]  # a fixture
GREEDY = ("--temperature", "0", "--max-new-tokens", "12", "--ctx", "128", "--no-loop-guard")


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_the_same_answer(tmp_path: Path, run: Run, command: str) -> None:
    path = folder(tmp_path, "glm4", "native")
    tensors = file_tensors("glm4", "native", network("glm4"))
    adapter = write_lora(tmp_path / "a", random_modules(tensors, 8), lora_alpha=32)
    texts = []
    for engine in ("native", "torch"):
        for more in ([], ["--adapter", str(adapter)]):
            result = run(
                command, str(path), "-p", "你好", "--json", "--weights", "float32", "--engine",
                engine, "--threads", "1", *more, *GREEDY,
            )  # fmt: skip
            assert result.exit_code == 0, result.stderr
            texts.append(json.loads(result.stdout)["text"])
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]


def test_weights_in_integers(tmp_path: Path, run: Run) -> None:
    path = folder(tmp_path, "glm4", "native")
    result = run(
        "generate", str(path), "-p", "你好", "--engine", "torch", "--device", "cpu", "--weights",
        "int8", "--threads", "1", *GREEDY,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "torch", "--activations", "int8"], "native engine's"),
        (["--engine", "torch", "--kv", "int8"], "not in int8"),
        (["--device", "cuda"], "--engine torch"),
    ],
)
def test_wrong_use(tmp_path: Path, run: Run, options: list[str], said: str) -> None:
    path = folder(tmp_path, "glm4", "native")
    result = run("generate", str(path), "-p", "x", *options, *GREEDY)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.split())
