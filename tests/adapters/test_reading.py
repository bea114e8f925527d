"""Adapters from files: names of every layout, scales, and what is refused by name."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer.adapters import Adapter, read_adapter
from glimmer.architecture import Architecture
from glimmer.errors import (
    GlimmerError,
    MalformedCheckpointError,
    ModelNotFoundError,
    UnknownFormatError,
    UnsafeCheckpointError,
    UnsupportedArchitectureError,
)
from glimmer.families import all_families
from tests.support import adapters, families, hf_folder
from tests.support.adapters import file_tensors, random_half, random_modules, write_lora
from tests.support.tiny import Floats
from tests.test_export import LAYOUTS


def read(folder: Path, family: str, architecture: Architecture | None = None) -> Adapter:
    network = architecture or families.tiny_architecture(family)
    return read_adapter(folder, all_families()[family], network)


def native_modules(rank: int = 4) -> dict[str, adapters.Half]:
    tensors = file_tensors("glm4", "native", families.tiny_architecture("glm4"))
    return random_modules(tensors, rank, modules=["q_proj", "gate_up_proj"])


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_every_layout(tmp_path: Path, family: str, layout: str, kind: str) -> None:
    """The tensors of the merged file, put together from the parts, are the base's plus B A."""
    network = families.tiny_architecture(family)
    zeros = {name: 0 * t for name, t in file_tensors(family, layout, network).items()}
    modules = random_modules(zeros, 3)
    folder = write_lora(tmp_path / "a", modules, kind=kind, lora_alpha=6)
    adapter = read(folder, family)
    assert (adapter.kind, adapter.family, adapter.ranks) == ("lora", family, [3])
    assert adapter.base == "someone/base"
    found = all_families()[family].weight_map.layout(layout)
    assert found is not None
    deltas: dict[str, Floats] = {
        name: np.zeros(shape, np.float32) for name, shape in network.weight_shapes().items()
    }
    deltas |= {f"{name}.weight": part.delta() for name, part in adapter.low_rank.items()}
    put = families.assemble(found, network, deltas)
    for name, tensor in adapters.add_modules(zeros, modules, 2.0).items():
        np.testing.assert_allclose(put[name], tensor, atol=1e-6)
    # Weights of one tensor share its A.
    whole = {id(part.a) for part in adapter.low_rank.values()}
    assert len(whole) == len(modules)


def test_interleaved_heads_of_the_first_release(tmp_path: Path) -> None:
    """Row by row: of each head its query, key and value."""
    a = families.tiny_architecture("chatglm")
    module = "transformer.layers.1.attention.query_key_value"
    b = np.arange(3 * 64, dtype=np.float32)[:, None]
    folder = write_lora(tmp_path / "a", {module: (np.ones((1, 64), np.float32), b)}, lora_alpha=1)
    adapter = read(folder, "chatglm")
    assert set(adapter.low_rank) == {f"layers.1.attn_{x}" for x in "qkv"}
    for index, x in enumerate("qkv"):
        rows = adapter.low_rank[f"layers.1.attn_{x}"].b[:, 0].reshape(a.num_heads, a.head_dim)
        for head in range(a.num_heads):
            start = (head * 3 + index) * a.head_dim
            np.testing.assert_array_equal(rows[head], np.arange(start, start + a.head_dim))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path: Path, dtype: str) -> None:
    adapter = read(write_lora(tmp_path / "a", native_modules(), dtype=dtype), "glm4")
    exact = native_modules()["model.layers.0.self_attn.q_proj"][0]
    np.testing.assert_allclose(adapter.low_rank["layers.0.attn_q"].a, exact, atol=2e-3)


def test_scales(tmp_path: Path) -> None:
    def scales(**config: Any) -> dict[str, float]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        adapter = read(write_lora(folder, native_modules(4), **config), "glm4")
        return {name: part.scale for name, part in adapter.low_rank.items()}

    assert set(scales(lora_alpha=12).values()) == {3.0}
    assert set(scales(lora_alpha=12, use_rslora=True).values()) == {6.0}
    patterns = {"layers.1.self_attn.q_proj": 8, "^model.layers.2.mlp.gate_up_proj": 20}
    found = scales(lora_alpha=12, alpha_pattern=patterns)
    assert found["layers.1.attn_q"] == 2.0
    assert found["layers.2.mlp_gate"] == found["layers.2.mlp_up"] == 5.0
    assert found["layers.0.attn_q"] == found["layers.1.mlp_up"] == 3.0
    assert scales(alpha_pattern={r".*q_proj": 4})["layers.2.attn_q"] == 1.0


def test_ranks_of_their_own(tmp_path: Path) -> None:
    modules = native_modules(4)
    wide = "model.layers.1.self_attn.q_proj"
    modules[wide] = random_half(64, 64, 16, np.random.default_rng(0))
    folder = write_lora(tmp_path / "a", modules, lora_alpha=8, rank_pattern={wide: 16})
    adapter = read(folder, "glm4")
    assert adapter.ranks == [4, 16]
    assert adapter.low_rank["layers.1.attn_q"].scale == 0.5
    folder = write_lora(tmp_path / "b", modules, r=4)
    with pytest.raises(MalformedCheckpointError, match=r"q_proj.lora_A.*\[16, 64\].*\[4, 64\]"):
        read(folder, "glm4")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is .'lm_head'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights.*changing the base"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"enable_lora": [True, False, True]}, "enable_lora"),
        ({"alpha_pattern": {"(a+)+": 1}}, "alpha_pattern has the pattern"),
        ({"peft_type": "IA3"}, "kind 'IA3'; supported are LORA and PREFIX_TUNING"),
    ],
)
def test_more_than_low_rank_products(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = write_lora(tmp_path / "a", native_modules(), **config)
    with pytest.raises(UnsupportedArchitectureError, match=message):
        read(folder, "glm4")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.lm_head.weight", "lm_head.weight' is more than"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "belongs to an embedding"),
        ("base_model.model.x.lora_magnitude_vector", "belongs to DoRA"),
    ],
)
def test_tensors_that_are_no_halves(tmp_path: Path, name: str, message: str) -> None:
    more = {name: np.ones((2, 2), np.float32)}
    folder = write_lora(tmp_path / "a", native_modules(), tensors=more)
    with pytest.raises(UnsupportedArchitectureError, match=message):
        read(folder, "glm4")


def test_what_does_not_fit(tmp_path: Path) -> None:
    def refused(name: str, modules: dict[str, adapters.Half], **config: Any) -> str:
        with pytest.raises(MalformedCheckpointError) as caught:
            read(write_lora(tmp_path / name, modules, **config), "glm4")
        return str(caught.value)

    rng = np.random.default_rng(0)
    message = refused("module", {"model.layers.0.self_attn.k": random_half(64, 64, 2, rng)})
    assert "'model.layers.0.self_attn.k'" in message
    assert "glm4, 3 layers" in message
    assert "model.layers.0.self_attn.q_proj" in message
    message = refused("layer", {"model.layers.3.self_attn.q_proj": random_half(64, 64, 2, rng)})
    assert "'model.layers.3.self_attn.q_proj'" in message
    message = refused("width", {"model.layers.0.self_attn.q_proj": random_half(64, 32, 2, rng)})
    assert "lora_A.weight' has shape [2, 32]" in message
    assert "[64, 64] in this network, it must be [2, 64]" in message
    message = refused("height", {"model.layers.0.self_attn.k_proj": random_half(64, 64, 2, rng)})
    assert "lora_B.weight' has shape [64, 2]" in message
    assert "[32, 64] in this network, it must be [32, 2]" in message
    assert "holds no tensor" in refused("nothing", {})
    assert "positive integer" in refused("rank", native_modules(), r=0)
    assert "lora_alpha must be a number" in refused("alpha", native_modules(), lora_alpha="x")
    # JSON holds integers of any size, and Python's reader NaN; the engine has float32.
    for i, alpha in enumerate((10**400, -(10**400), 1e39, math.inf, math.nan)):
        assert "lora_alpha must be a number" in refused(
            f"alpha {i}", native_modules(), lora_alpha=alpha
        )
    pattern = {"q_proj": 10**400}
    assert "it is 1000" in refused("pattern", native_modules(), alpha_pattern=pattern)
    assert "at most 64" in refused(
        "large", {"model.layers.0.self_attn.k_proj": random_half(32, 64, 65, rng)}
    )


def test_sizes_are_compared_before_anything_is_read(tmp_path: Path) -> None:
    """A file of 8 GB, of which nothing is written: its header says what it would be."""
    folder = write_lora(tmp_path / "a", native_modules(), r=2**24)
    header = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight": {
            "dtype": "F32", "shape": shape, "data_offsets": [i * 2**32, (i + 1) * 2**32]
        }
        for i, (half, shape) in enumerate({"A": [2**24, 64], "B": [64, 2**24]}.items())
    }  # fmt: skip
    data = json.dumps(header).encode()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + 2**33)
    with pytest.raises(MalformedCheckpointError, match="at most 64"):
        read(folder, "glm4")


def test_a_half_that_comes_twice(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    more = {name: np.ones((4, 64), np.float32)}
    folder = write_lora(tmp_path / "a", native_modules(), tensors=more)
    with pytest.raises(MalformedCheckpointError, match="the same half of one linear"):
        read(folder, "glm4")


@pytest.mark.parametrize(("family", "head"), [("glm4", "lm_head"), ("chatglm", "lm_head")])
def test_a_head_that_is_the_embedding_takes_none(tmp_path: Path, family: str, head: str) -> None:
    network = families.tiny_architecture(family, tied_head=True)
    half = random_half(network.vocab_size, network.hidden_size, 2, np.random.default_rng(0))
    folder = write_lora(tmp_path / "a", {head: half})
    with pytest.raises(UnsupportedArchitectureError, match="'lm_head', but in this network"):
        read(folder, family, network)


def test_patterns_for_every_module_are_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As EVA has PEFT write them: a rank and an alpha by the whole name of each module."""
    modules = native_modules(4)
    given = dict.fromkeys(modules, 4)
    folder = write_lora(
        tmp_path / "a", modules, r=8, rank_pattern=given, lora_alpha=1, alpha_pattern=given
    )
    compiled: list[str] = []
    compile_ = re.compile
    monkeypatch.setattr(re, "compile", lambda p, *flags: compiled.append(p) or compile_(p, *flags))
    assert {part.scale for part in read(folder, "glm4").low_rank.values()} == {1.0}
    assert len([p for p in compiled if p.startswith(r"(.*\.)?")]) == 2 * len(modules)


def test_the_head_comes_with_the_bases_own_weight(tmp_path: Path) -> None:
    """As PEFT saves it; the vocabulary must be the network's."""
    rng = np.random.default_rng(0)
    name = "base_model.model.lm_head.base_layer.weight"
    for rows, fits in ((300, True), (301, False)):
        more = {name: np.ones((rows, 64), np.float32)}
        modules = {"lm_head": random_half(300, 64, 2, rng)}
        folder = write_lora(tmp_path / str(rows), modules, tensors=more)
        if fits:
            assert set(read(folder, "glm4").low_rank) == {"head"}
        else:
            with pytest.raises(MalformedCheckpointError, match=r"\[301, 64\].*\[300, 64\]"):
                read(folder, "glm4")


def test_half_a_module(tmp_path: Path) -> None:
    a = np.ones((2, 64), np.float32)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    folder = write_lora(tmp_path / "a", {}, tensors={name: a})
    with pytest.raises(MalformedCheckpointError, match=r"lora_A of .*without its other half"):
        read(folder, "glm4")


def test_a_folder_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a configuration file may name it, which no shell reads."""
    write_lora(tmp_path / "a", native_modules())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(Path("~/a"), "glm4").path == tmp_path / "a"


def test_folders_that_hold_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder"):
        read(tmp_path / "none", "glm4")
    with pytest.raises(UnknownFormatError, match="holds no adapter"):
        read(tmp_path, "glm4")
    # A model, whose official config leaves the prefix open.
    (tmp_path / "config.json").write_text(json.dumps({"pre_seq_len": None}))
    with pytest.raises(UnknownFormatError, match=r"holds no adapter.*not the model's"):
        read(tmp_path, "chatglm2")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UnknownFormatError, match=r"neither adapter_model.safetensors nor .*bin"):
        read(tmp_path, "glm4")


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    evil = hf_folder.program(hf_folder.global_("os", "system"))
    (tmp_path / "adapter_model.bin").write_bytes(hf_folder.zip_file(evil))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UnsafeCheckpointError):
        read(tmp_path, "glm4")


def test_what_an_adapter_is_worth(tmp_path: Path) -> None:
    modules = native_modules()
    adapter = read(write_lora(tmp_path / "a", modules), "glm4")
    assert adapter.changes_anything
    assert adapter.not_finite is None
    assert adapter.num_parameters == sum(a.size + b.size for a, b in modules.values())
    silent = {name: (a, 0 * b) for name, (a, b) in modules.items()}
    assert not read(write_lora(tmp_path / "b", silent), "glm4").changes_anything
    assert not read(write_lora(tmp_path / "c", modules, lora_alpha=0), "glm4").changes_anything
    name, (a, b) = next(iter(modules.items()))
    broken = {**modules, name: (a, np.where(b == b[0, 0], np.float32(math.nan), b))}
    adapter = read(write_lora(tmp_path / "d", broken), "glm4")
    assert adapter.not_finite is not None
    assert "B of layers.0" in adapter.not_finite
    with pytest.raises(MalformedCheckpointError, match="NaN"):
        adapter.check_finite()


def test_digests_are_those_of_the_content(tmp_path: Path) -> None:
    modules = native_modules()
    name, (a, b) = next(iter(modules.items()))
    found = [
        read(write_lora(tmp_path / str(i), given, **config), "glm4").digest
        for i, (given, config) in enumerate(
            [
                (modules, {}),
                (modules, {"base_model_name_or_path": "another"}),
                (modules, {"lora_alpha": 13}),
                ({**modules, name: (a, b + 1)}, {}),
            ]
        )
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


# --- prefixes


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_an_official_prefix(tmp_path: Path, family: str, kind: str) -> None:
    a = families.tiny_architecture(family)
    values = adapters.random_prefix(a, 5)
    folder = adapters.write_prefix(tmp_path / "p", values.reshape(5, -1), kind=kind)
    adapter = read(folder, family)
    assert (adapter.kind, adapter.prefix_length) == ("prefix", 5)
    assert adapter.prefix is not None
    np.testing.assert_array_equal(adapter.prefix, values)


def test_prefixes_that_do_not_fit(tmp_path: Path) -> None:
    a = families.tiny_architecture("chatglm2")
    values = adapters.random_prefix(a, 5).reshape(5, -1)
    folder = adapters.write_prefix(tmp_path / "long", values, pre_seq_len=6)
    with pytest.raises(MalformedCheckpointError, match=r"embedding.weight' must be \[6, 192\]"):
        read(folder, "chatglm2")
    folder = adapters.write_prefix(tmp_path / "p", values)
    with pytest.raises(UnsupportedArchitectureError, match="has one of 3 tokens"):
        read(folder, "chatglm2", families.tiny_architecture("chatglm2", prefix_length=3))
    folder = adapters.write_prefix(tmp_path / "none", values[:0])
    with pytest.raises(GlimmerError, match="between 1 and"):
        read(folder, "chatglm2")


def test_prefixes_of_peft_need_a_network_of_its_kind(tmp_path: Path) -> None:
    config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5}
    a = families.tiny_architecture("glm4")
    prompt = {"prompt_embeddings": adapters.random_prefix(a, 5).reshape(5, -1)}
    folder = write_lora(tmp_path / "a", {}, tensors=prompt, **config)
    adapter = read(folder, "glm4")
    assert adapter.prefix is not None
    values = prompt["prompt_embeddings"].reshape(adapter.prefix.shape)
    np.testing.assert_array_equal(adapter.prefix[:, :, 1], values[:, :, 1])
    assert (adapter.prefix[:, :, 0] != values[:, :, 0]).any()
    with pytest.raises(UnsupportedArchitectureError, match="two positions"):
        read(folder, "chatglm")
    for i, length in enumerate(("x" * 10**6, 0, 10**400, 1.0)):
        given = {**config, "num_virtual_tokens": length}
        folder = write_lora(tmp_path / f"{i}", {}, tensors=prompt, **given)
        with pytest.raises(
            MalformedCheckpointError, match=r"must be an integer|between 1"
        ) as error:
            read(folder, "glm4")
        assert len(str(error.value)) < 1000
    folder = write_lora(tmp_path / "b", {}, tensors=prompt, **{**config, "num_virtual_tokens": 6})
    with pytest.raises(MalformedCheckpointError, match=r"prompt_embeddings' of shape \[6, 192\]"):
        read(folder, "glm4")
