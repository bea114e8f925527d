"""The command: what its flags become, and what it tells at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glimmer import training
from glimmer.training.config import FinetuneConfig
from tests.cli.conftest import Run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was asked for; "result" may be changed beforehand."""
    answer = {
        "prompt": "Who?",
        "before": "\x1b[31mA dog.",
        "after": "A fox.",
        "drift": 0.5,
    }
    calls: dict[str, Any] = {
        "result": {
            "output": Path("out"),
            "steps": 4,
            "losses": (2.0, 1.0),
            "eval_loss": 1.5,
            "drift": SimpleNamespace(
                per_token=0.5, threshold=1.0, answers=[answer], is_too_large=False
            ),
            "parameters": SimpleNamespace(total=1000, trained=10),
            "seconds": 3.2,
            "checkpoint": None,
            "num_cut": 0,
            "num_skipped": 0,
            "is_main": True,
        }
    }

    def fake(config: FinetuneConfig, **options: Any) -> Any:
        calls.update(config=config, options=options)
        return SimpleNamespace(**calls["result"])

    monkeypatch.setitem(vars(training), "finetune", fake)
    return calls


def test_flags_and_settings_override_the_file(
    run: Run, asked: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: demo\ndata: a.jsonl\noutput: out\nepochs: 2\nlora_rank: 4\n")
    result = run(
        "finetune", str(file), "--epochs", "5", "--data", "b.jsonl", "--data", "c.jsonl",
        "--set", "lora-rank=16", "--set", "guard=false", "--resume",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    config = asked["config"]
    assert (config.epochs, config.lora_rank, config.guard) == (5, 16, False)
    assert config.data == [Path("b.jsonl"), Path("c.jsonl")]
    assert asked["options"]["resume"]
    assert not asked["options"]["overwrite"]


def test_it_tells_the_losses_and_the_answers(run: Run, asked: dict[str, Any]) -> None:
    result = run("finetune", "--model", "demo", "--data", "a", "--output", "out")
    assert "4 steps in 3 s, loss 2.0000 -> 1.0000, on the held-out data 1.5000" in result.stdout
    assert "10 of 1,000 weights trained" in result.stdout
    assert "␛[31mA dog." in result.stdout
    assert "+0.50" in result.stdout
    assert result.stderr == ""


def test_json(run: Run, asked: dict[str, Any]) -> None:
    result = run("finetune", "--model", "demo", "--data", "a", "--output", "o", "--json")
    said = json.loads(result.stdout)
    assert (said["finished"], said["last_loss"], said["drift"]) == (True, 1.0, 0.5)


def test_a_stopped_run_tells_how_to_go_on(run: Run, asked: dict[str, Any]) -> None:
    asked["result"] |= {"checkpoint": Path("out/checkpoints/checkpoint-4"), "drift": None}
    result = run("finetune", "--model", "demo", "--data", "a", "--output", "out")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert "Stopped after step 4" in result.stderr
    assert "--resume goes on from there" in result.stderr


def test_warnings(run: Run, asked: dict[str, Any]) -> None:
    asked["result"] |= {"num_cut": 2, "num_skipped": 1}
    asked["result"]["drift"].is_too_large = True
    result = run("finetune", "--model", "demo", "--data", "a", "--output", "out")
    assert "2 texts lost their end and 1 were left out" in result.stderr
    assert "drifted" in result.stderr


def test_other_processes_say_nothing(run: Run, asked: dict[str, Any]) -> None:
    asked["result"]["is_main"] = False
    result = run("finetune", "--model", "demo", "--data", "a", "--output", "out")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "lack 'model'"),
        (["--set", "rank"], "--set looks like lora_rank=16"),
        (["--set", "lora_rnk=3"], "did you mean 'lora_rank'?"),
        (["--model", "m", "--data", "d", "--output", "o", "--method", "lor"], "method is 'lor'"),
        (["nothing.yaml"], "no configuration file nothing.yaml"),
    ],
)
def test_wrong_use(run: Run, asked: dict[str, Any], arguments: list[str], said: str) -> None:
    result = run("finetune", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "config" not in asked


def test_without_the_extra_it_tells_how_to_install() -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from glimmer.cli.main import main; "
        "sys.exit(main(['finetune', '--model', 'demo', '--data', 'a', '--output', 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "This needs torch, which is not installed" in done.stderr
    assert "pip install 'glimmer-lm[train]'" in done.stderr
