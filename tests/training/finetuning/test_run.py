"""Whole runs of tiny networks: losses fall, results load, interruptions change nothing."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import glimmer
from glimmer import hf
from glimmer.errors import (
    InvalidParameterError,
    TrainingError,
)
from glimmer.training import finetune
from glimmer.training.data import IGNORED
from glimmer.training.finetuning.callbacks import LossGuard
from glimmer.training.finetuning.dataset import read_rows
from glimmer.training.text import open_text
from tests.support import tuning

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuning.tiny_model(tmp_path_factory.mktemp("model") / "m")


def mean(values: Any) -> float:
    return sum(values) / len(values)


def report(folder: Path) -> Any:
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


def test_lora_lowers_the_loss_and_leaves_a_plain_adapter(model: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(
        tmp_path, model, data, epochs=6, eval_share=0.25, guard=True, guard_prompts=["the fox"],
        guard_max_tokens=4,
    )  # fmt: skip
    result = finetune(config)
    assert mean(result.losses[-3:]) < 0.8 * mean(result.losses[:3])

    settings = json.loads((config.output / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(model.resolve())
    assert settings["peft_type"] == "LORA"
    left = sorted(file.name for file in config.output.iterdir())
    assert left == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoints",
        "loss.png",
        "training.json",
    ]
    kept = {folder.name for folder in (config.output / "checkpoints").glob("checkpoint-*")}
    assert kept == {f"checkpoint-{result.steps - 3}", f"checkpoint-{result.steps}"}
    assert (config.output / "loss.png").read_bytes().startswith(b"\x89PNG")

    said = report(config.output)
    assert said["finished"]
    assert [step["loss"] for step in said["losses"]] == list(result.losses)
    assert said["losses"][0].keys() >= {"step", "loss", "learning_rate", "grad_norm"}
    assert said["data"]["examples"] == 6
    assert said["eval_data"]["examples"] == 2
    assert said["evaluations"][-1]["eval_loss"] == result.eval_loss
    assert said["versions"]["torch"] == torch.__version__
    assert 0 < said["trained_parameters"] < said["parameters"]
    (answer,) = said["forgetting"]["answers"]
    assert answer["prompt"] == "the fox"
    assert result.drift is not None
    assert answer["drift"] == said["forgetting"]["per_token"] == result.drift.per_token > 0

    tuned = PeftModel.from_pretrained(hf.load(model, dtype="float32"), config.output)
    changed = [p for name, p in tuned.named_parameters() if "lora_B" in name]
    assert len(changed) == 2 * 6  # q k v o, gate_up and down of both layers
    assert all(parameter.abs().max() > 0 for parameter in changed)


def test_the_drift_is_what_the_old_answers_lose(model: Path, tmp_path: Path) -> None:
    """Computed apart, from the files; and asking changes nothing of the training."""
    from peft import PeftModel

    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(
        tmp_path, model, data, max_steps=4, lora_dropout=0.2, guard=True, guard_max_tokens=5,
        guard_prompts=["the fox", "你好"],
    )  # fmt: skip
    terminal = io.StringIO()
    result = finetune(config, console=Console(file=terminal, force_terminal=True, width=120))
    assert f"Loading {model}"[:100] in terminal.getvalue()
    assert terminal.getvalue().count("Asking the forgetting guard's questions") >= 2
    silent = config.model_copy(update={"output": tmp_path / "silent", "guard": False})
    assert finetune(silent).losses == result.losses

    file = config.output / "checkpoints" / "answers_before.json"
    asked = [(a["prompt_ids"], a["answer_ids"]) for a in json.loads(file.read_text())]
    assert all(len(answer) <= 5 for _, answer in asked)

    def loss(network: Any) -> float:
        total = 0.0
        for prompt, answer in asked:
            with torch.no_grad():
                logits = network(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            expected = torch.tensor(answer)
            total += torch.nn.functional.cross_entropy(logits, expected, reduction="sum").item()
        return total

    before = loss(hf.load(model, dtype="float32"))
    after = loss(PeftModel.from_pretrained(hf.load(model, dtype="float32"), config.output).eval())
    assert result.drift is not None
    count = sum(len(answer) for _, answer in asked)
    assert result.drift.per_token == pytest.approx((after - before) / count, abs=1e-3)
    assert result.drift.per_token > 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dropout": 0.2, "eval_share": 0.25, "eval_every": 2, "guard": True},
        {"method": "freeze", "trained_layers": 1, "learning_rate": 1e-3},
        {"objective": "dpo"},
    ],
    ids=["lora", "freeze", "dpo"],
)
def test_a_resumed_run_has_the_very_same_losses(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    make = tuning.preferences if changes.get("objective") == "dpo" else tuning.answers
    data = make(tmp_path / "a.jsonl")
    whole = tuning.settings(
        tmp_path, model, data, epochs=3, save_every=4, guard_prompts=["the fox"], **changes
    )
    straight = finetune(whole)

    interrupted = whole.model_copy(update={"output": tmp_path / "stopped"})
    stop_at = straight.steps // 2  # in the middle of the second pass
    with monkeypatch.context() as patch:
        heard = LossGuard.on_log

        def press_ctrl_c(self: Any, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            heard(self, args, state, *rest, **kwargs)
            if state.global_step == stop_at - 1:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(LossGuard, "on_log", press_ctrl_c)
        stopped = finetune(interrupted)
    assert stopped.checkpoint is not None
    assert stopped.checkpoint.name == f"checkpoint-{stop_at}"
    assert stopped.losses == straight.losses[:stop_at]
    assert not report(interrupted.output)["finished"]

    resumed = finetune(interrupted, resume=True)
    assert resumed.checkpoint is None
    assert resumed.losses == straight.losses
    assert resumed.drift == straight.drift
    one, other = report(whole.output), report(interrupted.output)
    assert one["evaluations"] == other["evaluations"]
    for file in whole.output.glob("*.safetensors"):
        assert (interrupted.output / file.name).read_bytes() == file.read_bytes()


def test_only_the_same_run_is_resumed(model: Path, tmp_path: Path) -> None:
    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(tmp_path, model, data, max_steps=1)
    with pytest.raises(InvalidParameterError, match="no checkpoint to resume from"):
        finetune(config, resume=True)
    finetune(config)
    with pytest.raises(InvalidParameterError, match="exists already"):
        finetune(config)
    (config.output / "left.bin").write_bytes(b"")
    finetune(config, overwrite=True)
    assert not (config.output / "left.bin").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidParameterError, match="is not the folder of a run"):
        finetune(config.model_copy(update={"output": tmp_path / "mine"}), overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    other = config.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(InvalidParameterError, match=r"begun with learning_rate 0\.01, and not"):
        finetune(other, resume=True)
    tuning.answers(data, tuning.PAIRS[1:])
    with pytest.raises(InvalidParameterError, match="other data"):
        finetune(config, resume=True)


def test_a_run_goes_on_with_as_many_processes_and_as_it_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(tmp_path, model, data, max_steps=4, save_every=2, keep_checkpoints=9)
    done = finetune(config)
    checkpoints = config.output / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(InvalidParameterError, match="with 1 processes, and not with 2"):
            finetune(config, resume=True)
    # As if the machine had gone down while the last checkpoint's last file was written.
    file = checkpoints / "checkpoint-4" / "trainer_state.json"
    file.write_text(file.read_text()[:100])
    resumed = finetune(config.model_copy(update={"save_every": 1}), resume=True)
    assert resumed.losses == done.losses
    names = {folder.name for folder in checkpoints.glob("checkpoint-*")}
    assert names == {"checkpoint-2", "checkpoint-3", "checkpoint-4"}
    # One that reached its end writes its result again.
    (config.output / "adapter_model.safetensors").unlink()
    assert finetune(config, resume=True).losses == done.losses
    assert (config.output / "adapter_model.safetensors").is_file()
    (checkpoints / "run.json").unlink()
    with pytest.raises(InvalidParameterError, match=r"run\.json, which tells .* cannot be read"):
        finetune(config, resume=True)


def test_a_loss_that_is_no_number_ends_the_run(model: Path, tmp_path: Path) -> None:
    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(
        tmp_path, model, data, learning_rate=1e38, schedule="constant", warmup=0
    )
    with pytest.raises(TrainingError, match=r"Step \d: the (loss|gradient's length) is nan"):
        finetune(config)
    assert not (config.output / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("family", "method"),
    [("glm4", "full"), ("glm4_0414", "freeze"), ("glm45", "full"), ("chatglm", "freeze")],
)
def test_whole_models_are_read_by_the_engine(family: str, method: str, tmp_path: Path) -> None:
    path = tuning.tiny_model(tmp_path / "m", family)
    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(
        tmp_path, path, data, method=method, trained_layers=1, learning_rate=1e-3,
    )  # fmt: skip
    result = finetune(config)
    share = result.parameters.trained / result.parameters.total
    assert share == 1 if method == "full" else 0 < share < 1

    native = glimmer.load(config.output, weights="float32")
    assert native.family == family
    ids = native.chat_template.encode([{"role": "user", "content": "who are you"}])
    with torch.no_grad():
        tuned = hf.load(config.output, dtype="float32")(torch.tensor([ids])).logits[0]
        before = hf.load(path, dtype="float32")(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(torch.tensor(native.logits(ids)), tuned, atol=2e-3, rtol=1e-3)
    assert (tuned - before).abs().max() > 0.01


@pytest.mark.parametrize("projection", [False, True], ids=["plain", "projected"])
def test_ptuning_of_chatglm_6b_lowers_the_loss(projection: bool, tmp_path: Path) -> None:
    from glimmer.hf import prefix

    path = tuning.tiny_model(tmp_path / "m", "chatglm")
    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(
        tmp_path, path, data, method="ptuning", prefix_tokens=6, prefix_projection=projection,
        epochs=8, learning_rate=0.03 if projection else 0.3, schedule="constant",
        guard=True, guard_prompts=["who"], guard_max_tokens=3,
    )  # fmt: skip
    result = finetune(config)
    assert mean(result.losses[-4:]) < 0.9 * mean(result.losses[:4])
    settings = json.loads((config.output / "config.json").read_text())
    assert (settings["pre_seq_len"], settings["prefix_projection"]) == (6, projection)
    fresh = hf.load(path, dtype="float32")
    prefix.load_prefix(fresh, config.output)
    assert fresh.base_model.prefix_encoder.projection == projection
    # The engine with the prefix, beside a plain request, gives the tokens that torch gives.
    llm = glimmer.LLM(glimmer.load(path, weights="float32"), adapters={"p": config.output})
    ids = llm.model.chat_template.encode([{"role": "user", "content": "who"}])
    params = glimmer.SamplingParams(temperature=0, max_new_tokens=8, ignore_eos=True)
    with torch.inference_mode():
        expected = fresh.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=8, min_new_tokens=8,
            eos_token_id=None,
        )[0, len(ids) :].tolist()  # fmt: skip
    plain = llm.generate([ids], params)[0].token_ids
    assert list(llm.generate([ids], params, adapter="p")[0].token_ids) == expected
    assert list(plain) != expected, "the prefix changes the answer"


def test_computing_and_saving_in_fewer_bits(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(
        tmp_path, model, data, method="full", mixed_precision="bf16", save_dtype="bfloat16",
        learning_rate=1e-3,
    )  # fmt: skip
    plain = config.model_copy(update={"output": tmp_path / "plain", "mixed_precision": "no"})
    assert finetune(config).losses == pytest.approx(finetune(plain).losses, rel=0.02)
    tensors = load_file(config.output / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert glimmer.load(config.output).family == "glm4"
    assert json.loads((config.output / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_checkpointing": True}, {"method": "freeze"}],
    ids=["lora", "checkpointing", "freeze"],
)
def test_dpo_raises_the_margin(changes: dict[str, Any], model: Path, tmp_path: Path) -> None:
    data = tuning.preferences(tmp_path / "p.jsonl")
    config = tuning.settings(
        tmp_path, model, data, objective="dpo", epochs=3, learning_rate=5e-3, **changes
    )
    finetune(config)
    margins = [step["rewards/margins"] for step in report(config.output)["losses"]]
    assert margins[0] == pytest.approx(0, abs=1e-4)  # the model is its own reference at first
    assert mean(margins[-3:]) > 0.2


@pytest.mark.parametrize(
    ("family", "method"), [("chatglm", "lora"), ("chatglm", "ptuning"), ("glm45", "full")]
)
def test_dpo_of_other_networks(family: str, method: str, tmp_path: Path) -> None:
    """Its log-probabilities pass by the network's own head and loss."""
    path = tuning.tiny_model(tmp_path / "m", family)
    rate = {"lora": 3e-2, "ptuning": 1.0, "full": 1e-3}[method]
    config = tuning.settings(
        tmp_path, path, tuning.preferences(tmp_path / "p.jsonl"), objective="dpo", method=method,
        prefix_tokens=4, learning_rate=rate, schedule="constant", epochs=4,
        gradient_checkpointing=method == "lora",
    )  # fmt: skip
    finetune(config)
    margins = [step["rewards/margins"] for step in report(config.output)["losses"]]
    # A prefix is another model from the start: it is random.
    assert method == "ptuning" or margins[0] == pytest.approx(0, abs=1e-4)
    assert mean(margins[-4:]) > mean(margins[:4]) + 0.1


def test_a_prefix_is_trained_with_gradient_checkpointing(tmp_path: Path) -> None:
    path = tuning.tiny_model(tmp_path / "m", "chatglm")
    plain = tuning.settings(
        tmp_path, path, tuning.answers(tmp_path / "a.jsonl"), method="ptuning", prefix_tokens=4,
        learning_rate=0.3, max_steps=3,
    )  # fmt: skip
    again = plain.model_copy(update={"output": tmp_path / "again", "gradient_checkpointing": True})
    assert finetune(again).losses == pytest.approx(finetune(plain).losses, rel=1e-5)


@pytest.mark.parametrize("family", ["glm4", "chatglm"])
def test_passes_of_a_step_are_one_batch(family: str, tmp_path: Path) -> None:
    path = tuning.tiny_model(tmp_path / "m", family)
    data = tuning.answers(tmp_path / "a.jsonl")
    whole = tuning.settings(tmp_path, path, data, batch_size=4, max_steps=3)
    parts = whole.model_copy(
        update={"output": tmp_path / "parts", "batch_size": 1, "gradient_accumulation": 4}
    )
    assert finetune(parts).losses == pytest.approx(finetune(whole).losses, rel=1e-4)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("glm4", {"batch_size": 1}), ("glm4", {"batch_size": 3}), ("glm4", {"packing": True}),
     ("chatglm", {"batch_size": 3})],
)  # fmt: skip
def test_what_is_held_out_is_measured_by_its_tokens(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """However they are batched: a short answer counts less than a long one."""
    path = tuning.tiny_model(tmp_path / "m", family)
    data = tuning.answers(tmp_path / "a.jsonl")
    held_out = tuning.answers(tmp_path / "b.jsonl", [*tuning.PAIRS[:4], ("who", "fox " * 20)])
    config = tuning.settings(
        tmp_path,
        path,
        data,
        eval_data=held_out,
        max_steps=1,
        warmup=0,
        learning_rate=1e-9,
        **changes,
    )
    text = open_text(path)
    model = hf.load(path, dtype="float32")
    total, count = 0.0, 0
    for row in read_rows(config.eval_data, config, text).rows:
        labels = torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum").item()
        count += int((labels != IGNORED).sum())
    assert finetune(config).eval_loss == pytest.approx(total / count, rel=1e-4)


def test_gradient_checkpointing_changes_no_loss(model: Path, tmp_path: Path) -> None:
    data = tuning.answers(tmp_path / "a.jsonl")
    plain = tuning.settings(tmp_path, model, data, max_steps=3)
    again = plain.model_copy(update={"output": tmp_path / "again", "gradient_checkpointing": True})
    assert finetune(again).losses == pytest.approx(finetune(plain).losses, rel=1e-5)


def test_packed_rows_are_learned_from(model: Path, tmp_path: Path) -> None:
    data = tuning.answers(tmp_path / "a.jsonl")
    held_out = tuning.answers(tmp_path / "b.jsonl", tuning.PAIRS[:3])
    config = tuning.settings(
        tmp_path, model, data, packing=True, batch_size=1, epochs=4, eval_data=held_out
    )
    padded = tuning.settings(tmp_path, model, data, batch_size=8, max_steps=1)
    result = finetune(config)
    assert result.steps < 4 * len(tuning.PAIRS)
    assert mean(result.losses[-2:]) < mean(result.losses[:2])
    assert result.eval_loss is not None
    assert report(config.output)["eval_data"]["examples"] == 3
    once = padded.model_copy(update={"output": tmp_path / "padded"})
    packed = config.model_copy(
        update={
            "output": tmp_path / "packed",
            "max_length": 4096,
            "max_steps": 1,
            "eval_data": [],
        }
    )
    # All texts in one row, or in a row each: the mean loss of their tokens is one.
    assert finetune(packed).losses == pytest.approx(finetune(once).losses, rel=1e-4)


def test_the_command_trains_and_writes_for_tensorboard(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from glimmer.cli.main import main

    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(tmp_path, model, data, max_steps=2, tensorboard=True)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    assert main(["finetune", str(file), "--set", "guard=true", "--set", "guard_max_tokens=2"]) == 0
    out, err = capsys.readouterr()
    assert "lora" in out
    assert "2 steps in" in out
    assert "What is the capital of France?" in out
    assert "drifted" in err or err == ""
    assert list((config.output / "tensorboard").glob("events.*"))
    assert main(["finetune", str(file)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_learning_rate_rises_and_falls(model: Path, tmp_path: Path) -> None:
    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(
        tmp_path, model, data, max_steps=6, warmup=2, schedule="linear", learning_rate=0.4
    )
    finetune(config)
    rates = [step["learning_rate"] for step in report(config.output)["losses"]]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.3, 0.2, 0.1])
