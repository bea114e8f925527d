"""`glimmer adapter verify`, `glimmer merge` and --adapter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import glimmer
from glimmer.cli.options import named_adapters
from tests.cli.conftest import Run
from tests.cli.fake_llm import FakeLLM
from tests.support import adapters, families
from tests.support.adapters import file_tensors, random_modules, write_lora
from tests.test_export import folder, network


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folder(tmp_path, "glm4", "native")


def modules() -> dict[str, adapters.Half]:
    network = families.tiny_architecture("glm4", vocab_size=544)
    return random_modules(file_tensors("glm4", "native", network), 4, 0, ["q_proj", "gate_up_proj"])


def test_a_good_one(tmp_path: Path, run: Run, base: Path) -> None:
    lora = write_lora(tmp_path / "lora", modules())
    result = run("adapter", "verify", str(lora), "--model", str(base), "--family", "glm4")
    assert result.exit_code == 0
    for part in ("LoRA", str(base), "glm4", "someone/base", "it changes answers"):
        assert part in result.stdout
    assert "3 x attn_q, 3 x mlp_gate, 3 x mlp_up" in result.stdout
    report = json.loads(
        run(
            "adapter", "verify", str(lora), "--model", str(base), "--family", "glm4", "--json"
        ).stdout
    )
    assert (report["ranks"], report["scales"], report["verdict"]) == ([4], [3.0], "ok")
    assert report["num_parameters"] == 3 * (4 * 64 + 64 * 4 + 4 * 64 + 192 * 4)


def test_what_is_wrong(tmp_path: Path, run: Run, base: Path) -> None:
    def verify(path: Path) -> tuple[int, str]:
        result = run("adapter", "verify", str(path), "--model", str(base), "--family", "glm4")
        return result.exit_code, result.stdout + result.stderr

    silent = {name: (a, 0 * b) for name, (a, b) in modules().items()}
    code, text = verify(write_lora(tmp_path / "silent", silent))
    assert code == 1
    assert "changes nothing" in text
    broken = {name: (a * np.float32(np.nan), b) for name, (a, b) in modules().items()}
    code, text = verify(write_lora(tmp_path / "broken", broken))
    assert code == 1
    assert "A of layers.0.attn_q holds NaN" in text
    other = {f"transformer.{name}": both for name, both in modules().items()}
    code, text = verify(write_lora(tmp_path / "other", other))
    assert code == 1
    assert "no linear of this network" in text
    code, text = verify(tmp_path / "nowhere")
    assert code == 2
    assert "There is no folder" in text


def test_what_must_be_merged_is_told(tmp_path: Path, run: Run) -> None:
    base = folder(tmp_path, "glm45", "native")
    tensors = file_tensors("glm45", "native", network("glm45"))
    lora = write_lora(tmp_path / "lora", random_modules(tensors, 2, 0, ["experts.0.up_proj"]))
    args = ("adapter", "verify", str(lora), "--model", str(base), "--family", "glm45")
    result = run(*args)
    assert result.exit_code == 0
    assert "once it is merged (glimmer merge)" in " ".join(result.stdout.split())
    report = json.loads(run(*args, "--json").stdout)
    assert (report["only_merges"], report["verdict"]) == (True, "ok")


def test_a_prefix(tmp_path: Path, run: Run, base: Path) -> None:
    network = families.tiny_architecture("glm4", vocab_size=544)
    values = adapters.random_prefix(network, 7).reshape(7, -1)
    path = adapters.write_prefix(tmp_path / "p", values)
    result = run("adapter", "verify", str(path), "--model", str(base), "--family", "glm4")
    assert result.exit_code == 0
    assert "a prefix of 7 tokens" in result.stdout


def test_merge(tmp_path: Path, run: Run, base: Path) -> None:
    lora = write_lora(tmp_path / "lora", modules())
    common = ["merge", str(base), str(lora), str(tmp_path / "out"), "--family", "glm4"]
    result = run(*common, "--dtype", "float32", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["weights_by_dtype"].keys() == {"float32"}
    assert (tmp_path / "out" / "config.json").is_file()
    assert run(*common).exit_code == 2
    assert run(*common, "--force").exit_code == 0


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_one_that_cannot_be_used_is_told_before_the_model_is_loaded(
    tmp_path: Path, run: Run, base: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    loaded: list[str] = []
    monkeypatch.setitem(vars(glimmer), "load", lambda model, **_: loaded.append(model))
    other = {f"transformer.{name}": both for name, both in modules().items()}
    for path, message in (
        (write_lora(tmp_path / "other", other), "no linear of this network"),
        (tmp_path / "nowhere", "There is no folder"),
    ):
        given = (str(base), "-p", "x", "--family", "glm4", "--adapter", str(path))
        result = run(command, *given)
        assert result.exit_code == (1 if path.exists() else 2)
        assert message in " ".join(result.stderr.split())
    assert not loaded


def test_answers_with_an_adapter(tmp_path: Path, run: Run, llm: FakeLLM) -> None:
    assert run("chat", "-p", "Hello").exit_code == 0
    assert (llm.options["adapters"], llm.used) == ({}, [None])
    assert run("chat", "-p", "Hello", "--adapter", str(tmp_path / "persona")).exit_code == 0
    assert llm.options["adapters"] == {"persona": str(tmp_path / "persona")}
    assert llm.used[-1] == "persona"
    assert run("generate", "x", "-p", "Hello", "--adapter", "me=some/folder").exit_code == 0
    assert llm.options["adapters"] == {"me": "some/folder"}
    assert llm.used[-1] == "me"


def test_folders_named_after_how_they_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r=8").mkdir()
    assert named_adapters(["r=8"]) == {"r=8": "r=8"}
    assert named_adapters(["runs/lr=1e-4"]) == {"lr=1e-4": "runs/lr=1e-4"}
    assert named_adapters(["me=runs/lr=1e-4"]) == {"me": "runs/lr=1e-4"}
    assert named_adapters(["me=r=8"]) == {"me": "r=8"}
    assert named_adapters(["."]) == {tmp_path.name: "."}


def test_serve_takes_several(tmp_path: Path, run: Run) -> None:
    one = ("--adapter", "a=x", "--adapter", "b=y")
    result = run("serve", "m=demo", *one, "--print-config")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["models"][0]["adapters"] == {"a": "x", "b": "y"}
    result = run("serve", "m=demo", "n=demo", *one, "--print-config")
    assert result.exit_code == 2
    assert "--adapter goes with one model" in result.stderr
    result = run("serve", "m=demo", "--adapter", "a=x", "--adapter", "a=y", "--print-config")
    assert result.exit_code == 2
    assert "Two adapters are called 'a'" in result.stderr
