"""The network of ChatGLM2 from its config or GGUF keys; ChatGLM3 and GLM-4 build on it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from glimmer.architecture import Architecture, Rope
from glimmer.checkpoints import Checkpoint
from glimmer.errors import UnsupportedArchitectureError
from glimmer.families.config import Config

ROPE_BASE = 10000.0


def is_remote_layout(checkpoint: Checkpoint) -> bool:
    """Whether a config is that of the remote code of ChatGLM2, ChatGLM3 or GLM-4-9B."""
    config = checkpoint.metadata
    return (
        checkpoint.format != "gguf"
        and config.get("model_type") == "chatglm"
        and "padded_vocab_size" in config
    )


def is_native_layout(checkpoint: Checkpoint) -> bool:
    """Whether a config is that of transformers' ``glm``."""
    return checkpoint.format != "gguf" and checkpoint.metadata.get("model_type") == "glm"


def is_llama_cpp_layout(checkpoint: Checkpoint) -> bool:
    """Whether a GGUF file holds this network, as llama.cpp's converter writes it."""
    return (
        checkpoint.format == "gguf" and checkpoint.metadata.get("general.architecture") == "chatglm"
    )


def names_itself(checkpoint: Checkpoint) -> str:
    """What a checkpoint calls itself, in lower case: its config, its tokenizer, at last its folder.

    ChatGLM2 and ChatGLM3 have the same config keys and shapes: nothing but a name tells them apart,
    nor from GLM-4 and SmolLM2 in transformers' layout.
    """
    config = checkpoint.metadata
    said = [config.get("_name_or_path"), config.get("general.name")]
    if isinstance(auto_map := config.get("auto_map"), dict):
        said += auto_map.values()  # "THUDM/chatglm3-6b--configuration_chatglm.ChatGLMConfig"
    if (file := checkpoint.file("tokenizer_config.json")) is not None:
        said += _tokenizer_names(file)
    for text in (*said, checkpoint.path.name):
        if isinstance(text, str) and _GENERATION.search(text.lower()):
            return text.lower()
    return ""


_GENERATION = re.compile(r"(chatglm|codegeex)[-_]?[23]|smollm2")


def _tokenizer_names(file: Path) -> list[object]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # the tokenizer's own reader says what is wrong with it
    if not isinstance(config, dict):
        return []
    # The family is what Glimmer's bridge to transformers writes.
    return [config.get("name_or_path"), config.get("glimmer_family")]


def remote_network(
    checkpoint: Checkpoint, *, rope_base: float = ROPE_BASE, rope_linear_scale: float = 1.0
) -> Architecture:
    """From a config.json of the remote code; defaults are those of its config class."""
    config = Config(checkpoint)
    config.require("rmsnorm", True, True, "so its norms are LayerNorm")
    config.require("post_layer_norm", True, True, "so it has no final norm")
    config.require(
        "apply_residual_connection_post_layernorm", False, False, "so its residual is normed"
    )
    config.require("multi_query_attention", True, False, "so its heads share no keys")
    head_dim = config.count("kv_channels", 128)
    return Architecture(
        vocab_size=config.count("padded_vocab_size"),
        hidden_size=config.count("hidden_size"),
        num_layers=config.count("num_layers"),
        num_heads=config.count("num_attention_heads"),
        num_kv_heads=config.count("multi_query_group_num", 1),
        head_dim=head_dim,
        intermediate_size=config.count("ffn_hidden_size"),
        max_position=config.count("seq_length"),
        rope=Rope(dims=head_dim // 2, base=rope_base, linear_scale=rope_linear_scale),
        norm_eps=config.number("layernorm_epsilon", 1e-5),
        qkv_bias=config.flag("add_qkv_bias", False) or config.flag("add_bias_linear", False),
        attention_out_bias=config.flag("add_bias_linear", False),
        mlp_bias=config.flag("add_bias_linear", False),
        prefix_length=config.count("pre_seq_len", 0),
        tied_head=config.flag("tie_word_embeddings", False),
    )


def native_network(checkpoint: Checkpoint) -> Architecture:
    """From a config.json of transformers' ``glm`` and what follows it."""
    config = Config(checkpoint)
    config.require("hidden_act", "silu", "silu", "an activation")
    hidden_size, num_heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim = config.count("head_dim", hidden_size // max(num_heads, 1))
    # Newer releases of the library keep the two numbers of rotation in an object of their own.
    nested = config.table("rope_parameters")
    scaling = config.table("rope_scaling") or nested
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise UnsupportedArchitectureError(
            f"{checkpoint.path}: the config stretches positions by {kind!r}, which this version "
            "does not run; it runs linear. Remove rope_scaling from config.json to use the context "
            "that the model was trained for."
        )
    factor = float(scaling.get("factor", 1.0)) if kind == "linear" else 1.0
    theta = nested.get("rope_theta", config.number("rope_theta", ROPE_BASE))
    share = nested.get("partial_rotary_factor", config.number("partial_rotary_factor", 0.5))
    return Architecture(
        vocab_size=config.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=config.count("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=config.count("num_key_value_heads", num_heads),
        head_dim=head_dim,
        intermediate_size=config.count("intermediate_size"),
        max_position=config.count("max_position_embeddings"),
        rope=Rope(dims=int(head_dim * float(share)), base=float(theta), linear_scale=factor),
        norm_eps=config.number("rms_norm_eps"),
        qkv_bias=config.flag("attention_bias", False),
        tied_head=config.flag("tie_word_embeddings", False),
    )


def gguf_network(checkpoint: Checkpoint, prefix: str) -> Architecture:
    """From the keys that llama.cpp's converter writes under ``prefix``, such as "chatglm."."""
    config = Config(checkpoint, prefix)
    hidden_size, num_heads = config.count("embedding_length"), config.count("attention.head_count")
    head_dim = config.count("attention.key_length", hidden_size // max(num_heads, 1))
    embedding = checkpoint.tensors.get("token_embd.weight")
    scaling = config.text("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UnsupportedArchitectureError(
            f"{checkpoint.path}: the file stretches positions by {scaling!r}, which this version "
            "does not run; it runs none and linear."
        )
    return Architecture(
        # Older files have no count of tokens: the embedding has a row for each.
        vocab_size=config.count("vocab_size", embedding.shape[0] if embedding else 0),
        hidden_size=hidden_size,
        num_layers=config.count("block_count") - config.count("nextn_predict_layers", 0),
        num_heads=num_heads,
        num_kv_heads=config.count("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        intermediate_size=config.count("feed_forward_length"),
        max_position=config.count("context_length"),
        rope=Rope(
            dims=config.count("rope.dimension_count", head_dim // 2),
            base=config.number("rope.freq_base", ROPE_BASE),
            linear_scale=config.number("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0,
        ),
        norm_eps=config.number("attention.layer_norm_rms_epsilon"),
        qkv_bias=bool({"blk.0.attn_qkv.bias", "blk.0.attn_q.bias"} & checkpoint.tensors.keys()),
        tied_head=bool(checkpoint.tensors) and "output.weight" not in checkpoint.tensors,
    )
