"""Each thing that is wrong with a folder is found, and said with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from glimmer.cli.main import main
from glimmer.doctor import Finding, examine_machine, examine_model
from tests.test_export import folder


def found(path: Path, family: str | None = None) -> list[Finding]:
    return [f for f in examine_model(path, family) if f.severity != "ok"]


def test_a_good_model_has_nothing_wrong(tmp_path: Path) -> None:
    path = folder(tmp_path, "glm4", "native")
    assert [f for f in found(path) if f.severity in ("warning", "error")] == []
    assert main(["doctor", str(path)]) == 0


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "pointer": (
        lambda p: (p / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        "error",
        "git lfs pull",
    ),
    "empty": (lambda p: (p / "tokenizer.json").write_bytes(b""), "error", "is empty"),
    "truncated": (
        lambda p: (p / "model.safetensors").write_bytes(
            (p / "model.safetensors").read_bytes()[:-100]
        ),
        "error",
        "truncated",
    ),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "error", "no weights"),
    "no tokenizer": (lambda p: (p / "tokenizer.json").unlink(), "warning", "token ids alone"),
    "bad tokenizer": (lambda p: (p / "tokenizer.json").write_text("{}"), "error", "tokenizer.json"),
    "code": (lambda p: (p / "modeling_chatglm.py").write_text("1"), "note", "never run"),
    "broken off": (
        lambda p: (p / "model.bin.incomplete").write_text("1"), "warning", "glimmer pull",
    ),
    "eos": (lambda p: None, "note", "eos_token_id lacks"),
    "layers": (
        lambda p: (p / "config.json").write_text(
            (p / "config.json").read_text().replace('hidden_layers": 3', 'hidden_layers": 4')
        ),
        "error",
        "incomplete",
    ),
    "unknown": (
        lambda p: (p / "config.json").write_text('{"model_type": "mamba"}'), "error", "--family",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(tmp_path: Path, name: str) -> None:
    damage, severity, words = DAMAGES[name]
    path = folder(tmp_path, "glm4", "native")
    damage(path)
    assert any(f.severity == severity and words in f.text for f in found(path)), found(path)
    assert main(["doctor", str(path)]) == (1 if severity == "error" else 0)


def test_files_of_the_first_days_beside_newer_ones(tmp_path: Path) -> None:
    path = folder(tmp_path, "chatglm", "official")
    (path / "tokenizer_config.json").write_text('{"num_image_tokens": 20000}')
    assert any("20000 image tokens" in f.text for f in found(path))


def test_the_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert {f.subject for f in examine_machine()} >= {"processor", "cores", "Hugging Face cache"}
    assert main(["doctor", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
    monkeypatch.setenv("GLIMMER_ISA", "abacus")
    assert main(["doctor"]) == 1
    monkeypatch.setenv("GLIMMER_ISA", "scalar")
    assert any(f.severity == "warning" and "Unset" in f.text for f in examine_machine())
