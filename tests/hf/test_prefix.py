"""P-Tuning v2: what a prefix changes, what trains, and its official files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glimmer
from glimmer import hf
from glimmer.checkpoints.safetensors import SafetensorsFile
from glimmer.errors import InvalidParameterError, MalformedCheckpointError
from glimmer.hf.prefix import PREFIX_TENSORS, add_prefix, load_prefix, save_prefix
from tests.support import golden
from tests.test_export import folder

FAMILIES = [
    ("chatglm", "official"),
    ("chatglm2", "official"),
    ("glm4", "native"),
    ("glm4_0414", "native"),
    ("glm45", "native"),
]


def model_of(tmp_path: Path, family: str, layout: str) -> Any:
    path = tmp_path / f"{family}-{layout}"
    if not path.exists():
        folder(tmp_path, family, layout, dtype="float32")
    return hf.load(path, family=family)


def batch_for(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts, the first one padded on its left."""
    ids = torch.randint(300, 340, (2, 12), generator=torch.Generator().manual_seed(1))
    if hasattr(model.config, "gmask_token_id"):
        ids[:, -4] = model.config.gmask_token_id
        ids[:, -3] = model.config.bos_token_id
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return ids, mask


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize(("family", "layout"), FAMILIES)
def test_only_the_prefix_trains(tmp_path: Path, family: str, layout: str, projection: bool) -> None:
    model = model_of(tmp_path, family, layout)
    ids, mask = batch_for(model)
    with torch.no_grad():
        before = model(ids, attention_mask=mask).logits
    model.requires_grad_(False)
    torch.manual_seed(0)
    add_prefix(model, 5, projection)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        f"{model.base_model_prefix}.prefix_encoder.{name}"
        for name in (PREFIX_TENSORS if projection else PREFIX_TENSORS[:1])
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(6):
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        if name in trainable:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
    with torch.no_grad():
        after = model(ids, attention_mask=mask).logits
    assert (after - before).abs().max() > 0.1


@pytest.mark.parametrize(("family", "layout"), FAMILIES)
def test_padding_and_steps_change_nothing(tmp_path: Path, family: str, layout: str) -> None:
    model = model_of(tmp_path, family, layout)
    torch.manual_seed(0)
    add_prefix(model, 5, True)
    ids, mask = batch_for(model)
    ids = ids[:, :-2]  # an answer follows
    mask = mask[:, :-2]
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        alone = model(ids[:1, 5:]).logits[0]
    torch.testing.assert_close(logits[0, 5:], alone, atol=1e-4, rtol=1e-4)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    cached = model.generate(ids, **options)
    assert torch.equal(cached, model.generate(ids, **options, use_cache=False))


@pytest.mark.parametrize(("family", "layout"), FAMILIES[:3])
def test_gradient_checkpointing_gives_the_same_gradients(
    tmp_path: Path, family: str, layout: str
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = model_of(tmp_path, family, layout)
        model.requires_grad_(False)
        torch.manual_seed(0)
        add_prefix(model, 4, True)
        model.train()
        model.base_model.prefix_encoder.dropout.eval()  # random otherwise
        if checkpointing:
            model.activation_checkpointing_enable()
        ids, mask = batch_for(model)
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        encoder = model.base_model.prefix_encoder
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    assert gradients[0]["embedding.weight"].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("projection", [False, True])
def test_saved_as_the_official_training_does(tmp_path: Path, projection: bool) -> None:
    model = model_of(tmp_path, "chatglm2", "official")
    add_prefix(model, 5, projection, hidden_size=24 if projection else None)
    save_prefix(model, tmp_path / "prefix")
    config = json.loads((tmp_path / "prefix" / "config.json").read_text())
    assert (config["pre_seq_len"], config["prefix_projection"]) == (5, projection)
    assert config["hidden_size"] == model.config.hidden_size
    tensors = SafetensorsFile(tmp_path / "prefix" / "model.safetensors").tensors
    expected = PREFIX_TENSORS if projection else PREFIX_TENSORS[:1]
    assert set(tensors) == {f"transformer.prefix_encoder.{name}" for name in expected}
    if projection:
        assert tensors["transformer.prefix_encoder.trans.0.weight"].shape[0] == 24
    again = model_of(tmp_path, "chatglm2", "official")
    load_prefix(again, tmp_path / "prefix")
    ids, mask = batch_for(model)
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).logits
        assert torch.equal(again(ids, attention_mask=mask).logits, wanted)


def test_an_official_checkpoint_keeps_its_prefix() -> None:
    """Bit by bit, from loading to saving."""
    source = golden.folder("chatglm-6b-ptuning-proj")
    model = hf.load(source, dtype="float32")
    assert model.config.pre_seq_len == glimmer.load(source).architecture.prefix_length
    assert model.config.prefix_projection
    stored = SafetensorsFile(source / "model.safetensors")
    for name in PREFIX_TENSORS:
        full = f"transformer.prefix_encoder.{name}"
        expected = stored.read(full).view("<f2").reshape(stored.tensors[full].shape)
        np.testing.assert_array_equal(model.state_dict()[full].numpy(), expected)


def test_a_chatglm_with_its_prefix_is_saved_whole(tmp_path: Path) -> None:
    model = hf.load(golden.folder("chatglm-6b-ptuning-proj"), dtype="float32")
    model.save_pretrained(tmp_path / "m")
    ids, mask = batch_for(model)
    again = type(model).from_pretrained(tmp_path / "m")
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(again(ids, attention_mask=mask).logits, expected)
    ours = glimmer.load(tmp_path / "m", weights="float32")
    np.testing.assert_allclose(ours.logits(ids[1].tolist()), expected[1], atol=2e-4, rtol=0)


def test_the_states_are_computed_once_until_a_weight_changes(tmp_path: Path) -> None:
    model = model_of(tmp_path, "glm4", "native")
    add_prefix(model, 3, True)
    encoder = model.base_model.prefix_encoder
    with torch.no_grad():
        first = encoder.states()
        assert encoder.states() is first
        encoder.embedding.weight.mul_(2)
        assert not torch.equal(encoder.states(), first)
    assert encoder.states().requires_grad


def test_refusals(tmp_path: Path) -> None:
    model = model_of(tmp_path, "glm4", "native")
    with pytest.raises(InvalidParameterError, match="add_prefix"):
        save_prefix(model, tmp_path / "x")
    with pytest.raises(InvalidParameterError, match="num_tokens"):
        add_prefix(model, 0, False)
    with pytest.raises(MalformedCheckpointError, match="P-Tuning"):
        load_prefix(model, tmp_path / "glm4-native")
    other = model_of(tmp_path, "glm4_0414", "native")
    add_prefix(model, 2, False)
    save_prefix(model, tmp_path / "prefix")
    with pytest.raises(InvalidParameterError, match="already"):
        add_prefix(model, 2, False)
    tensors = dict(model.base_model.prefix_encoder.state_dict())
    tensors["embedding.weight"] = tensors["embedding.weight"][:, :-1]
    with pytest.raises(InvalidParameterError, match="trained on"):
        hf.prefix.attach_prefix(other, tensors)
