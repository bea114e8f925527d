"""QLoRA on a processor: NF4 weights of bitsandbytes, adapters beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from glimmer.training import finetune
from glimmer.training.finetuning import methods
from glimmer.training.text import open_text
from tests.support import tuning


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_qlora_lowers_the_loss_over_nf4_weights(tmp_path: Path) -> None:
    # Blocks of 64 weights share a scale: rows of whole blocks.
    path = tuning.tiny_model(tmp_path / "m", hidden_size=64, num_heads=4, intermediate_size=128)
    data = tuning.answers(tmp_path / "a.jsonl")
    config = tuning.settings(tmp_path, path, data, method="qlora", epochs=6)
    result = finetune(config)
    first, last = result.losses[:3], result.losses[-3:]
    assert sum(last) < 0.8 * sum(first)
    report = json.loads((config.output / "training.json").read_text())
    assert report["trained_parameters"] < report["parameters"]
    assert (config.output / "adapter_model.safetensors").is_file()

    model = methods.load_base(config, open_text(path))
    kinds = {type(p).__name__ for p in model.parameters()}
    assert "Params4bit" in kinds
    types = {
        p.quant_state.quant_type for p in model.parameters() if type(p).__name__ == "Params4bit"
    }
    assert types == {"nf4"}


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_preferences_train_a_float32_adapter_over_nf4_weights(tmp_path: Path) -> None:
    from glimmer.training.finetuning import dataset, trainers

    path = tuning.tiny_model(tmp_path / "m", hidden_size=64, num_heads=4, intermediate_size=128)
    data = tuning.preferences(tmp_path / "p.jsonl")
    config = tuning.settings(
        tmp_path, path, data, method="qlora", objective="dpo", epochs=3, learning_rate=5e-3
    )
    text = open_text(path)
    trainer = trainers.make_trainer(
        config, text, dataset.read_rows(config.data, config, text), None
    )
    trained = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    losses = finetune(config).losses
    assert losses[0] == pytest.approx(0.693, abs=1e-3)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
