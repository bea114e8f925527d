"""Checkpoints of every layout as transformers models, against the engine's own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

import glimmer
from glimmer import export, hf
from glimmer.architecture import Rope
from glimmer.checkpoints import open_checkpoint
from glimmer.errors import InvalidParameterError, OutOfMemoryError
from glimmer.hf import loading
from glimmer.hf.tensors import LazyTensor
from glimmer.model_source import ModelSource
from tests.support.demo_model import demo_gguf
from tests.support.tiny_gguf import tiny_gguf
from tests.test_export import LAYOUTS, folder

CLASSES = {
    "chatglm": "ChatGLMForConditionalGeneration",
    "chatglm2": "GlmForCausalLM",
    "chatglm3": "GlmForCausalLM",
    "glm4": "GlmForCausalLM",
    "glm4_0414": "Glm4ForCausalLM",
    "glm45": "Glm4MoeForCausalLM",
    "smollm": "GlmForCausalLM",
}


ROPES = {
    "chatglm": Rope(
        dims=16, base=10000.0, pairing="half", positions="2d", frequency_dtype="float16"
    ),
    "glm4": Rope(dims=16, base=10000.0),
}


def text_for(model: glimmer.LoadedModel, length: int = 40) -> list[int]:
    """Ids that the network takes: with a blank and a start token where it needs them."""
    ids = np.random.default_rng(0).integers(300, 340, length).tolist()
    if (blanks := model.architecture.blanks) is not None:
        ids[length // 2 : length // 2 + 2] = [blanks.blank_ids[0], blanks.start_id]
    return ids


def check_same(path: Path, family: str, *, dtype: str = "float32", atol: float = 2e-4) -> Any:
    ours = glimmer.load(path, weights="float32", family=family, num_threads=1)
    theirs = hf.load(path, dtype=dtype, family=family)
    assert type(theirs).__name__ == CLASSES[family]
    assert not theirs.training
    ids = text_for(ours)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].float().numpy()
    np.testing.assert_allclose(logits, ours.logits(ids), atol=atol, rtol=0)
    return theirs


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_folders(tmp_path: Path, family: str, layout: str) -> None:
    model = check_same(folder(tmp_path, family, layout), family)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.device.type == "cpu" for p in model.parameters())


@pytest.mark.parametrize(("family", "layout"), [f for f in LAYOUTS if f != ("glm4", "official")])
def test_gguf_files(tmp_path: Path, family: str, layout: str) -> None:
    source = folder(tmp_path, family, layout)
    export.quantize_model(source, tmp_path / "q.gguf", "q8_0", family=family)
    check_same(tmp_path / "q.gguf", family)


@pytest.mark.parametrize("tied_head", [True, False])
def test_the_demo_family(tmp_path: Path, tied_head: bool) -> None:
    model = check_same(tiny_gguf(tmp_path / "m.gguf", tied_head=tied_head), "smollm")
    tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tied == tied_head


@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_official_integers(tmp_path: Path, family: str, bits: Any) -> None:
    source = folder(tmp_path, family, "official", dtype="float16")
    export.quantize_model(source, tmp_path / "q", bits, family=family)
    check_same(tmp_path / "q", family)


def test_a_pytorch_file(tmp_path: Path) -> None:
    source = folder(tmp_path, "chatglm3", "official")
    from safetensors.torch import load_file

    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    expected = check_same(source, "chatglm3").state_dict()
    (source / "model.safetensors").unlink()
    found = check_same(source, "chatglm3").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [
        ("bfloat16", "auto", torch.bfloat16),
        ("float32", "auto", torch.float32),
        ("bfloat16", "float16", torch.float16),
        ("float32", torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtype(tmp_path: Path, stored: str, dtype: Any, expected: torch.dtype) -> None:
    source = folder(tmp_path, "glm45", "native", dtype=stored)
    model = hf.load(source, dtype=dtype)
    assert model.dtype == model.config.dtype == expected
    for name, parameter in model.state_dict().items():
        # transformers keeps the router, whose scores lie close together.
        kept = "mlp.gate." in name
        assert parameter.dtype == (torch.float32 if kept else expected), name


def test_quantised_weights_become_float16(tmp_path: Path) -> None:
    source = folder(tmp_path, "glm4", "native", dtype="float32")
    export.quantize_model(source, tmp_path / "q.gguf", "q8_0")
    assert hf.load(tmp_path / "q.gguf").dtype == torch.float16


def test_each_weight_is_read_once_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """from_pretrained takes them one by one: none is held twice."""
    source = folder(tmp_path, "chatglm2", "official")
    read: list[str] = []
    at_init: list[int] = []
    original, init = ModelSource.read, LazyTensor.__init__

    def spy(self: ModelSource, name: str) -> Any:
        read.append(name)
        return original(self, name)

    def counting(self: LazyTensor, *args: Any) -> None:
        at_init.append(len(read))
        init(self, *args)

    monkeypatch.setattr(ModelSource, "read", spy)
    monkeypatch.setattr(LazyTensor, "__init__", counting)
    hf.load(source)
    assert set(at_init) == {0}
    with open_checkpoint(source) as checkpoint:
        assert sorted(read) == sorted(ModelSource(checkpoint, "chatglm2").shapes)


def test_device_and_device_map(tmp_path: Path) -> None:
    source = folder(tmp_path, "glm4", "native")
    assert hf.load(source, device="cpu").device.type == "cpu"
    assert hf.load(source, device="meta").device.type == "meta"
    spread = hf.load(source, device_map="auto")
    assert spread.device.type == "cpu"
    with pytest.raises(InvalidParameterError, match="device_map"):
        hf.load(source, device="cpu", device_map="auto")


@pytest.mark.parametrize(("family", "layout"), [("chatglm", "official"), ("glm45", "native")])
def test_a_part_on_disk(tmp_path: Path, family: str, layout: str) -> None:
    """accelerate keeps there what memory does not hold, and brings it when its turn comes."""
    source = folder(tmp_path, family, layout, dtype="float32")
    whole = hf.load(source)
    base = whole.base_model_prefix
    places = {f"{base}.{name}": "cpu" for name, _ in whole.base_model.named_children()}
    places |= {f"{base}.layers.{i}": "disk" if i else "cpu" for i in range(3)}
    del places[f"{base}.layers"]
    parts = hf.load(
        source, device_map={**places, "lm_head": "cpu"}, offload_folder=str(tmp_path / "disk")
    )
    assert any((tmp_path / "disk").iterdir())
    ids = torch.tensor([text_for(glimmer.load(source))])
    with torch.no_grad():
        torch.testing.assert_close(parts(ids).logits, whole(ids).logits)


def test_refusals(tmp_path: Path) -> None:
    source = folder(tmp_path, "glm4", "native")
    with pytest.raises(InvalidParameterError, match="int8"):
        hf.load(source, dtype="int8")
    with pytest.raises(InvalidParameterError, match="is called dtype"):
        hf.load(source, torch_dtype=torch.float16)
    with pytest.raises(InvalidParameterError, match="no device 'nowhere'"):
        hf.load(source, device="nowhere")
    export.convert(source, tmp_path / "packed", "packed")
    with pytest.raises(InvalidParameterError, match="packed"):
        hf.load(tmp_path / "packed")


def test_what_does_not_fit_is_told_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(tmp_path, "glm4", "native")
    monkeypatch.setattr(loading, "available_memory", lambda: 2**19)
    assert hf.load(source, dtype="bfloat16")
    with pytest.raises(OutOfMemoryError, match=r"as float32.*on cpu.*device_map"):
        hf.load(source, dtype="float32")
    assert hf.load(source, dtype="float32", device_map="cpu")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't "
     "allocate memory: you tried to allocate 8 bytes."), RuntimeError("MPS backend out of memory")],
)  # fmt: skip
def test_what_does_not_fit_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(loading, "to_tensor", refuse)
    with pytest.raises(OutOfMemoryError, match=r"do not fit.*dtype.*memory"):
        hf.load(folder(tmp_path, "glm4", "native"))


def test_end_tokens_and_generation_config(tmp_path: Path) -> None:
    source = folder(tmp_path, "glm4", "native")
    ours = glimmer.load(source)
    model = hf.load(source)
    assert model.config.eos_token_id == list(ours.stop_token_ids)
    assert model.generation_config.eos_token_id == list(ours.stop_token_ids)
    # ChatGLM3's file tells one end of three, others none.
    file, first = source / "generation_config.json", ours.stop_token_ids[0]
    cases: list[tuple[Any, list[int]]] = [
        ({}, []), ({"eos_token_id": first}, []), ({"eos_token_id": [7, first]}, [7])
    ]  # fmt: skip
    for told, ends in cases:
        file.write_text(json.dumps({"top_p": 0.5, "do_sample": True, **told}))
        found = hf.load(source).generation_config
        assert found.top_p == 0.5
        assert found.eos_token_id == [*ours.stop_token_ids, *ends]
        assert found.pad_token_id == model.generation_config.pad_token_id is not None


def test_chatglm_is_saved_and_read_again(tmp_path: Path) -> None:
    """By Glimmer and, once its classes are registered, by the Auto classes."""
    source = folder(tmp_path, "chatglm", "official")
    model = hf.load(source, dtype="float32")
    hf.load_tokenizer(source).save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    check_same(tmp_path / "saved", "chatglm")
    assert glimmer.load(tmp_path / "saved").family == "chatglm"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=False)
    assert type(again) is type(model)
    assert again.lm_head.weight is again.transformer.word_embeddings.weight
    for (name, before), after in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(before, after), name


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3", "glm4"])
def test_the_auto_classes_refuse_the_other_generations(tmp_path: Path, family: str) -> None:
    source = folder(tmp_path, family, "official")
    with pytest.raises(InvalidParameterError, match=r"glimmer\.hf\.load"):
        AutoConfig.from_pretrained(source)


def test_the_auto_classes_refuse_official_integers(tmp_path: Path) -> None:
    source = folder(tmp_path, "chatglm", "official", dtype="float16")
    export.quantize_model(source, tmp_path / "q", "int8")
    with pytest.raises(InvalidParameterError, match="8 bits"):
        AutoConfig.from_pretrained(tmp_path / "q")


@pytest.mark.parametrize(("family", "layout"), [("chatglm", "official"), ("glm4", "native")])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_bitsandbytes_on_the_cpu(tmp_path: Path, family: str, layout: str, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    # bitsandbytes packs rows for a CPU in multiples of 128.
    source = folder(
        tmp_path, family, layout, dtype="float32", hidden_size=128, head_dim=32, num_heads=4,
        intermediate_size=256, rope=ROPES[family],
    )  # fmt: skip
    config = {
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    }[kind]
    exact = hf.load(source)
    model = hf.load(source, dtype="float32", quantization_config=config)
    assert model.is_quantized
    names = {type(m).__name__ for m in model.modules()}
    assert {"int8": "Linear8bitLt", "nf4": "Linear4bit"}[kind] in names
    ids = torch.tensor([text_for(glimmer.load(source, family=family))])
    with torch.no_grad():
        error = (model(ids).logits - exact(ids).logits).abs().mean()
    assert 0 < error < {"int8": 0.2, "nf4": 1.5}[kind]


def test_torchao_on_the_cpu(tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    source = folder(tmp_path, "glm4", "native", dtype="float32")
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    exact, model = hf.load(source), hf.load(source, quantization_config=config)
    ids = torch.tensor([[300, 301, 302, 303]])
    with torch.no_grad():
        error = (model(ids).logits - exact(ids).logits).abs().mean()
    assert 0 < error < 0.2


@pytest.mark.slow
def test_the_demo_answers_as_transformers_did(tmp_path: Path) -> None:
    from tests.support.golden import golden

    demo_gguf()
    model = hf.load("demo", dtype="float32")
    tokenizer = hf.load_tokenizer("demo")
    for case in golden("smollm2-135m/golden.json")["cases"]:
        prompt = tokenizer.apply_chat_template(
            case["messages"], add_generation_prompt=True, return_tensors="pt"
        )
        assert prompt["input_ids"][0].tolist() == case["ids"]
        made = model.generate(**prompt, max_new_tokens=len(case["greedy_ids"]), do_sample=False)
        assert made[0, len(case["ids"]) :].tolist() == case["greedy_ids"]
