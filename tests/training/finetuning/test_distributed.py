"""Two processes on this machine's processor learn as one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from glimmer import hf
from glimmer.training import finetune
from glimmer.training.config import FinetuneConfig
from tests.support import tuning

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuning.tiny_model(tmp_path_factory.mktemp("model") / "m")


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_config(config: FinetuneConfig) -> Path:
    file = config.output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    return file


def command(file: Path, processes: int, *flags: str) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        "-m", "glimmer", "finetune", str(file), *flags,
    ]  # fmt: skip


def launch(config: FinetuneConfig, *flags: str) -> Any:
    """The report of a run of two processes under torchrun."""
    done = subprocess.run(
        command(write_config(config), 2, *flags),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((config.output / "training.json").read_text())


def losses(report: Any) -> list[float]:
    return [step["loss"] for step in report["losses"]]


@pytest.mark.parametrize(
    ("changes", "two"),
    [
        ({"guard": True, "guard_prompts": ["the fox"], "eval_share": 0.5}, {}),
        ({"method": "full", "learning_rate": 1e-3}, {}),
        ({"method": "full", "learning_rate": 1e-3}, {"fsdp": True}),
        ({"guard": True, "guard_prompts": ["the fox"]}, {"fsdp": True}),
        ({"objective": "dpo"}, {}),
        ({"mixed_precision": "bf16", "gradient_checkpointing": True}, {"fsdp": True}),
    ],
    ids=["ddp-lora", "ddp-full", "fsdp-full", "fsdp-lora", "ddp-dpo", "fsdp-bf16"],
)
def test_two_processes_have_the_losses_of_one(
    model: Path, tmp_path: Path, changes: dict[str, Any], two: dict[str, Any]
) -> None:
    make = tuning.preferences if changes.get("objective") == "dpo" else tuning.answers
    data = make(tmp_path / "a.jsonl")
    # The rows of a step are the same: two of each of two processes, four of one.
    one = tuning.settings(tmp_path, model, data, epochs=3, batch_size=4, **changes)
    finetune(one)
    other = one.model_copy(update={"output": tmp_path / "two", "batch_size": 2, **two})
    report = launch(other)
    alone = json.loads((one.output / "training.json").read_text())
    assert report["processes"] == 2
    rounding = 2e-4 if one.mixed_precision == "no" else 2e-2
    assert losses(report) == pytest.approx(losses(alone), rel=rounding)
    assert len(losses(report)) == (3 if "eval_share" in changes else 6)
    if alone["forgetting"]:
        assert report["forgetting"]["per_token"] == pytest.approx(
            alone["forgetting"]["per_token"], abs=0.02
        )
    written = sorted(file.name for file in other.output.iterdir() if file.is_file())
    assert written == sorted(file.name for file in one.output.iterdir() if file.is_file())
    if one.method == "full":
        pairs = zip(
            hf.load(one.output, dtype="float32").parameters(),
            hf.load(other.output, dtype="float32").parameters(),
            strict=True,
        )
        assert max((a - b).abs().max().item() for a, b in pairs) < 1e-3


@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_resume(model: Path, tmp_path: Path, fsdp: bool) -> None:
    data = tuning.answers(tmp_path / "a.jsonl")
    whole = tuning.settings(
        tmp_path, model, data, epochs=3, batch_size=2, fsdp=fsdp, lora_dropout=0.2, save_every=3
    )
    straight = launch(whole)
    # As if the machine had gone down behind the first checkpoint.
    cut = whole.model_copy(update={"output": tmp_path / "cut"})
    cut.output.mkdir()
    (whole.output / "checkpoints").rename(cut.output / "checkpoints")
    for folder in (cut.output / "checkpoints").glob("checkpoint-*"):
        if folder.name != "checkpoint-3":
            for file in folder.glob("trainer_state.json"):
                file.unlink()
    resumed = launch(cut, "--resume")
    assert losses(resumed) == losses(straight)


def test_ctrl_c_stops_all_processes_together(model: Path, tmp_path: Path) -> None:
    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(tmp_path, model, data, max_steps=100_000, save_every=10)
    file = write_config(config)
    with subprocess.Popen(
        command(file, 2), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as launcher:
        while not list((config.output / "checkpoints").glob("checkpoint-*/trainer_state.json")):
            assert launcher.poll() is None
            time.sleep(0.1)
        launcher.send_signal(signal.SIGINT)
        _, said = launcher.communicate(timeout=60)
    report = json.loads((config.output / "training.json").read_text())
    assert not report["finished"]
    assert (config.output / "checkpoints" / f"checkpoint-{len(report['losses'])}").is_dir()
    assert said.count("the same command with --resume goes on from there") == 1
