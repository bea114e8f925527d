"""What each method adds and trains, read from the model whatever its class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glimmer import hf
from glimmer.errors import InvalidParameterError
from glimmer.training.finetuning import methods
from glimmer.training.text import open_text
from tests.support import tuning

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {f: tuning.tiny_model(root / f, f) for f in ("glm4", "glm45", "chatglm")}


def load(folders: dict[str, Path], family: str) -> Any:
    return hf.load(folders[family], dtype="float32")


@pytest.mark.parametrize(
    ("family", "of_a_layer"),
    [
        ("glm4", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}),
        # PEFT would take its dense layers for experts.
        ("glm45", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("chatglm", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    ],
)
def test_lora_targets_every_linear_layer_but_the_head(
    family: str, of_a_layer: set[str], folders: dict[str, Path], tmp_path: Path
) -> None:
    config = tuning.settings(tmp_path, folders[family], tmp_path)
    tuned = methods.add_lora(config, load(folders, family))
    names = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == of_a_layer
    assert tuned.peft_config["default"].lora_alpha == 16
    for layer in range(2):
        assert sum(f".{layer}." in name for name in names) >= 2 * len(of_a_layer)


def test_targets_may_be_named(folders: dict[str, Path], tmp_path: Path) -> None:
    config = tuning.settings(tmp_path, folders["glm4"], tmp_path, lora_targets=["q_proj"])
    tuned = methods.add_lora(config, load(folders, "glm4"))
    names = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert len(names) == 4
    assert all(".q_proj." in name for name in names)
    wrong = config.model_copy(update={"lora_targets": ["query"]})
    with pytest.raises(InvalidParameterError, match=r"names 'query'.*there are .*q_proj"):
        methods.add_lora(wrong, load(folders, "glm4"))


def test_preferences_do_not_train_the_head(folders: dict[str, Path], tmp_path: Path) -> None:
    """TRL never asks the layer itself for its logits."""
    config = tuning.settings(tmp_path, folders["glm4"], tmp_path, lora_targets=["lm_head"])
    model = load(folders, "glm4")
    assert methods.lora_config(config, model).target_modules == {"lm_head"}
    with pytest.raises(InvalidParameterError, match="'lm_head', the layer that makes logits"):
        methods.lora_config(config.model_copy(update={"objective": "dpo"}), model)


@pytest.mark.parametrize("family", ["glm4", "glm45", "chatglm"])
def test_freeze_trains_the_last_layers(family: str, folders: dict[str, Path]) -> None:
    model = load(folders, family)
    methods.train_last_layers(model, 1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "layers.1." in name}
    assert trained
    with pytest.raises(InvalidParameterError, match="is 3, but the model has 2 layers"):
        methods.train_last_layers(model, 3)


@pytest.mark.parametrize("projection", [False, True])
def test_ptuning_trains_the_prefix_alone(
    projection: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = tuning.settings(
        tmp_path, folders["chatglm"], tmp_path, method="ptuning", prefix_projection=projection
    )
    model = load(folders, "chatglm")
    methods.add_ptuning(config, model)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(names) == (5 if projection else 1)
    assert all("prefix_encoder." in name for name in names)
    counts = methods.count_parameters(model)
    assert 0 < counts.trained < counts.total


@pytest.mark.parametrize(
    ("stored", "changes", "wanted"),
    [
        ("bfloat16", {}, "auto"),
        ("float16", {}, "float32"),
        ("q4_0", {}, "float32"),
        ("float16", {"dtype": "float16"}, "float16"),
        ("bfloat16", {"method": "full"}, "float32"),
    ],
)
def test_what_weights_are_held_in(
    stored: str, changes: Any, wanted: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = tuning.settings(tmp_path, folders["glm4"], tmp_path, **{"dtype": "auto", **changes})
    text = replace(open_text(folders["glm4"]), stored_dtype=stored)
    assert methods.base_dtype(config, text) == wanted


def test_the_stored_type_is_that_of_most_weights(folders: dict[str, Path]) -> None:
    assert open_text(folders["glm4"]).stored_dtype == "float32"
