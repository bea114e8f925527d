"""`show` and `env`: facts, as tables and as JSON."""

import json
from pathlib import Path

import pytest

import glimmer
from glimmer import ModelSummary, native
from glimmer.architecture import Architecture, Rope
from glimmer.checkpoints import TensorInfo
from glimmer.errors import UnknownInstructionSetError
from tests.cli.conftest import Run

ARCHITECTURE = Architecture(
    vocab_size=512,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=128,
    max_position=1024,
    rope=Rope(dims=16, base=10000.0),
    norm_eps=1e-5,
)
TENSORS = [
    TensorInfo("token_embd.weight", (512, 64), "q8_0", 0, 34816),
    TensorInfo("output.weight", (512, 64), "q8_0", 34816, 34816),
    TensorInfo("norm\x1b[2J.weight", (64,), "float32", 69632, 256),
]


def summary(**changes: object) -> ModelSummary:
    values: dict[str, object] = {
        "path": Path("tiny.gguf"),
        "name": "Tiny",
        "format": "gguf",
        "family": "smollm",
        "architecture": ARCHITECTURE,
        "metadata": {
            "general.name": "Tiny",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": ["a"] * 512,
            "tokenizer.chat_template": "{% for m in messages %}\n" * 20,
        },
        "tensors": {t.name: t for t in TENSORS},
        "runnable": True,
        "why_not": None,
    }
    return ModelSummary(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(glimmer), "inspect", lambda model, family=None: summary())
    monkeypatch.setattr(native, "available_memory", lambda: 2**30)


@pytest.mark.usefixtures("tiny")
def test_show_as_tables(run: Run) -> None:
    result = run("show", "tiny.gguf", "--ctx", "256")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {tuple(line.split()) for line in result.stdout.splitlines()}
    assert {
        ("name", "Tiny"),
        ("runs", "here", "yes"),
        ("num_layers", "2"),
        ("rope.base", "10000"),
        ("norm_eps", "1e-05"),
        ("tokenizer.ggml.tokens", "512", "entries"),
        ("q8_0", "2", "68", "KiB"),
        ("float32", "1", "256", "B"),
        ("KV", "cache,", "256", "tokens", "64", "KiB"),
        ("available", "now", "1", "GiB"),
        ("fits", "yes"),
    } <= rows
    assert "token_embd.weight" not in result.stdout


@pytest.mark.usefixtures("tiny")
def test_show_lists_tensors_without_their_power_over_the_terminal(run: Run) -> None:
    result = run("show", "tiny.gguf", "--tensors")
    assert "512 x 64" in result.stdout
    assert "norm␛[2J.weight" in result.stdout


@pytest.mark.usefixtures("tiny")
def test_show_as_json(run: Run) -> None:
    report = json.loads(run("show", "tiny.gguf", "--json").stdout)
    assert report["architecture"]["rope"]["dims"] == 16
    assert report["metadata"]["tokenizer.ggml.tokens"] == {"length": 512}
    assert report["tensors_by_dtype"]["q8_0"] == {"count": 2, "size_bytes": 69632}
    assert report["memory"] == {
        "weights_bytes": 69888,
        "ctx": 1024,
        "kv_cache_bytes": 2**18,
        "total_bytes": 69888 + 2**18,
        "available_bytes": 2**30,
    }
    assert "tensors" not in report
    tensors = json.loads(run("show", "tiny.gguf", "--json", "--tensors").stdout)["tensors"]
    assert tensors[0]["shape"] == [512, 64]


def test_show_tells_why_a_model_does_not_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = summary(family=None, architecture=None, runnable=False, why_not="No family knows it.")
    monkeypatch.setitem(vars(glimmer), "inspect", lambda model, family=None: unknown)
    result = run("show", "tiny.gguf")
    assert result.exit_code == 0
    assert "no: No family knows it." in result.stdout
    assert json.loads(run("show", "tiny.gguf", "--json").stdout)["memory"]["kv_cache_bytes"] is None


def test_env(run: Run) -> None:
    facts = json.loads(run("env", "--json").stdout)
    assert facts["glimmer"] == glimmer.__version__
    assert facts["instruction_set"] in facts["instruction_sets"]
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] >= facts["available_memory_bytes"]
    table = run("env")
    assert table.exit_code == 0
    assert "instruction set" in table.stdout


def test_env_tells_all_it_can_before_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def instruction_set() -> str:
        raise UnknownInstructionSetError("There is no instruction set 'mmx'.")

    monkeypatch.setattr(native, "instruction_set", instruction_set)
    monkeypatch.setenv("GLIMMER_ISA", "mmx")
    result = run("env")
    assert result.exit_code == 2
    assert "processor" in result.stdout
    assert "GLIMMER_ISA" in result.stdout
    assert result.stderr == "error: There is no instruction set 'mmx'.\n"
