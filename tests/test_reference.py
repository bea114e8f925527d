"""The reference and the engine against logits recorded from the official models' own code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from glimmer.architecture import Architecture, Rope
from glimmer.native import instruction_sets
from glimmer.quantization import dequantize, quantize
from tests.support.golden import FOLDER
from tests.support.reference import forward
from tests.support.tiny import (
    DTYPES,
    TinyModel,
    encode,
    run,
)

Array = npt.NDArray[Any]

REMOTE_CODE = (  # releases whose checkpoints name their tensors as the repository's own code does
    "chatglm2-6b",
    "chatglm2-6b-32k",
    "chatglm3-6b",
    "chatglm3-6b-32k",
    "chatglm3-6b-128k",
    "glm-4-9b-chat",
    "glm-4-9b-chat-1m",
)
SANDWICH = ("glm-4-0414-9b", "glm-4-0414-32b")
RELEASES = (*REMOTE_CODE, "glm-4-9b-chat-hf", *SANDWICH)

TOLERANCE = 1e-3  # as recorded with the logits
HALF_KV_TOLERANCE = 3e-2  # a key on the edge between two float16 falls on either side

# A module inside a layer, or outside all of them -> the canonical weights that its rows hold.
MODULES = {
    "transformer.embedding.word_embeddings": ("embedding",),
    "transformer.encoder.final_layernorm": ("final_norm",),
    "transformer.output_layer": ("head",),
    "self_attention.query_key_value": ("attn_q", "attn_k", "attn_v"),
    "self_attention.dense": ("attn_out",),
    "mlp.dense_h_to_4h": ("mlp_gate", "mlp_up"),
    "mlp.dense_4h_to_h": ("mlp_down",),
    "model.embed_tokens": ("embedding",),
    "model.norm": ("final_norm",),
    "lm_head": ("head",),
    "self_attn.q_proj": ("attn_q",),
    "self_attn.k_proj": ("attn_k",),
    "self_attn.v_proj": ("attn_v",),
    "self_attn.o_proj": ("attn_out",),
    "mlp.gate_up_proj": ("mlp_gate", "mlp_up"),
    "mlp.down_proj": ("mlp_down",),
    "input_layernorm": ("attn_norm",),
    "post_attention_layernorm": ("mlp_norm",),
    "post_self_attn_layernorm": ("attn_post_norm",),
    "post_mlp_layernorm": ("mlp_post_norm",),
}


@pytest.mark.parametrize("release", RELEASES)
def test_the_reference_gives_the_recorded_logits(release: str) -> None:
    architecture, weights, recorded = load_release(release)
    check_logits(forward(architecture, weights, recorded["greedy_ids"][0]), recorded, TOLERANCE)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("release", RELEASES)
def test_the_engine_gives_the_recorded_logits(release: str, isa: str) -> None:
    architecture, weights, recorded = load_release(release)
    model = TinyModel.of(architecture, weights).native(isa=isa)
    token_ids = recorded["greedy_ids"][0].astype(np.int32)
    [logits] = run(model, [token_ids], kv_dtype="float32")
    check_logits(logits, recorded, TOLERANCE)
    # These miniatures move by several tenths when keys and values are float16, as the engine stores
    # them by default: only a reference that stores them so is near.
    [logits] = run(model, [token_ids], chunk=16)
    np.testing.assert_allclose(
        logits,
        forward(architecture, weights, token_ids, kv_dtype="float16"),
        rtol=0,
        atol=HALF_KV_TOLERANCE,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_definitions_of_a_stored_form_agree(dtype: str) -> None:
    matrix = np.random.default_rng(0).standard_normal((7, 96)).astype(np.float32)
    matrix[0] = 0
    stored, values = encode(dtype, matrix)
    np.testing.assert_array_equal(dequantize(dtype, stored.reshape(-1), (7, 96)), values)
    # Two roundings of one matrix differ by no more than one step of the form.
    step = {"float32": 0, "float16": 0, "bfloat16": 0, "q8_0": 0.04, "q4_0": 0.6, "q4_1": 0.4}
    other = dequantize(dtype, quantize(dtype, matrix), (7, 96))
    np.testing.assert_allclose(other, values, rtol=0, atol=step[dtype])


def check_logits(logits: Array, recorded: dict[str, Array], tolerance: float) -> None:
    """``logits`` are of the prompt and of the tokens that the recorded model chose after it."""
    prompt_length = recorded["input_ids"].shape[1]
    steps = logits[prompt_length - 1 : -1]
    for actual, expected in (
        (logits[:prompt_length], recorded["logits"][0]),
        (steps, recorded["greedy_step_logits"][0]),
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(steps.argmax(axis=1), recorded["greedy_ids"][0, prompt_length:])


def load_release(release: str) -> tuple[Architecture, dict[str, Array], dict[str, Array]]:
    """Architecture, float32 weights and recorded results of a release's miniature."""
    folder = FOLDER / release
    if not folder.exists():
        pytest.skip(f"no recorded logits at {folder}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = (remote_code_architecture if release in REMOTE_CODE else hf_architecture)(config)
    stored = read_safetensors(folder / "model.safetensors")
    weights = canonical_weights(architecture, stored)
    return architecture, weights, read_safetensors(folder / "golden.safetensors")


def remote_code_architecture(config: dict[str, Any]) -> Architecture:
    # The -32k releases of the second and third generation spell the same key differently: the
    # former divides positions by it, the latter multiplies the base.
    ratio = config.get("rope_ratio", 1)
    divides = "chatglm2" in config["_name_or_path"]
    return Architecture(
        vocab_size=config["padded_vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["multi_query_group_num"],
        head_dim=config["kv_channels"],
        intermediate_size=config["ffn_hidden_size"],
        max_position=config["seq_length"],
        rope=Rope(
            dims=config["kv_channels"] // 2,
            base=10000.0 if divides else 10000.0 * ratio,
            linear_scale=float(ratio) if divides else 1.0,
        ),
        norm_eps=config["layernorm_epsilon"],
        qkv_bias=config["add_qkv_bias"],
    )


def hf_architecture(config: dict[str, Any]) -> Architecture:
    return Architecture(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        intermediate_size=config["intermediate_size"],
        max_position=config["max_position_embeddings"],
        rope=Rope(
            dims=int(config["head_dim"] * config["partial_rotary_factor"]),
            base=config["rope_theta"],
        ),
        norm_eps=config["rms_norm_eps"],
        norm_place="sandwich" if config["model_type"] == "glm4" else "pre",
        qkv_bias=config["attention_bias"],
    )


def canonical_weights(architecture: Architecture, stored: dict[str, Array]) -> dict[str, Array]:
    shapes = architecture.weight_shapes()
    weights: dict[str, Array] = {}
    for name, tensor in stored.items():
        if name.endswith("inv_freq"):
            continue  # the official code does not read it either
        module, kind = name.rsplit(".", 1)
        layer = ""
        if in_layer := re.fullmatch(r".+?\.layers\.(\d+)\.(.+)", module):
            layer, module = f"layers.{in_layer[1]}.", in_layer[2]
        names = [f"{layer}{part}.{kind}" for part in MODULES[module]]
        ends = np.cumsum([shapes[part][0] for part in names])
        weights.update(zip(names, np.split(tensor, ends[:-1]), strict=True))
    return weights


def read_safetensors(path: Path) -> dict[str, Array]:
    """Every tensor by name; float16 and bfloat16 as float32."""
    data = path.read_bytes()
    header_size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + header_size]), data[8 + header_size :]
    dtypes = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "BOOL": "?"}
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        x = np.frombuffer(body[first:last], dtypes[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "F16":
            x = x.astype(np.float32)
        elif entry["dtype"] == "BF16":
            x = (x.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = x
    return tensors
