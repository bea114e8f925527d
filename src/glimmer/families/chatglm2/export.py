"""The network's numbers as files of others want them: transformers' ``glm``, llama.cpp's keys.

Key names: GlmConfig of transformers; ChatGLMModel of llama.cpp's converter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from glimmer.architecture import Architecture
from glimmer.checkpoints.gguf_writer import GGUFValue
from glimmer.errors import InvalidParameterError
from glimmer.families.chatglm2.network import ROPE_BASE
from glimmer.families.chatglm2.tokenizer import end_of_text
from glimmer.families.exporter import Exporter, FolderConfig, FolderFormat
from glimmer.tokenizers import SentencePieceTokenizer
from glimmer.tokenizers.export import sentence_piece_gguf, sentence_piece_json, tokenizer_config

GGUF_ARCHITECTURE = "chatglm"
MODEL_CLASS = "GlmForCausalLM"


def gguf_keys(a: Architecture, prefix: str = GGUF_ARCHITECTURE) -> dict[str, Any]:
    """The network under llama.cpp's keys."""
    keys: dict[str, Any] = {
        "context_length": a.max_position,
        "embedding_length": a.hidden_size,
        "feed_forward_length": a.intermediate_size,
        "block_count": a.num_layers,
        "attention.head_count": a.num_heads,
        "attention.head_count_kv": a.num_kv_heads,
        "attention.key_length": a.head_dim,
        "attention.value_length": a.head_dim,
        "attention.layer_norm_rms_epsilon": a.norm_eps,
        "rope.dimension_count": a.rope.dims,
        "rope.freq_base": a.rope.base,
        "vocab_size": a.vocab_size,
    }
    if a.rope.linear_scale != 1:
        keys["rope.scaling.type"] = "linear"
        keys["rope.scaling.factor"] = a.rope.linear_scale
    return {f"{prefix}.{key}": value for key, value in keys.items()}


def native_config(
    a: Architecture,
    *,
    dtype: str,
    eos_token_ids: Sequence[int],
    pad_token_id: int | None,
    model_type: str = "glm",
    model_class: str = MODEL_CLASS,
) -> dict[str, Any]:
    """config.json of transformers' native class.

    Raises:
        InvalidParameterError: the network has a choice for which that class has no place.
    """
    if a.mlp_bias or a.attention_out_bias or a.prefix_length:
        what = "a trained prefix" if a.prefix_length else "biases"
        raise InvalidParameterError(
            f"transformers' {model_class} has no place for {what}, so this model cannot be "
            "converted to its layout; GGUF of other engines has none either. Use it as it is."
        )
    config: dict[str, Any] = {
        "architectures": [model_class],
        "model_type": model_type,
        "attention_bias": a.qkv_bias,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": list(eos_token_ids) or None,
        "head_dim": a.head_dim,
        "hidden_act": "silu",
        "hidden_size": a.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": a.intermediate_size,
        "max_position_embeddings": a.max_position,
        "num_attention_heads": a.num_heads,
        "num_hidden_layers": a.num_layers,
        "num_key_value_heads": a.num_kv_heads,
        "pad_token_id": pad_token_id,
        "partial_rotary_factor": a.rope.dims / a.head_dim,
        "rms_norm_eps": a.norm_eps,
        "rope_theta": a.rope.base,
        "tie_word_embeddings": a.tied_head,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": a.vocab_size,
    }
    if a.rope.linear_scale != 1:
        config["rope_scaling"] = {"rope_type": "linear", "factor": a.rope.linear_scale}
    return config


def official_config(
    a: Architecture, *, dtype: str, eos_token_ids: Sequence[int], pad_token_id: int | None
) -> dict[str, Any]:
    """config.json of the official code, which it reads where that code lies beside it."""
    if a.rope.linear_scale != 1:
        rope = {"rope_ratio": a.rope.linear_scale}
    else:
        rope = {} if a.rope.base == ROPE_BASE else {"rope_ratio": a.rope.base / ROPE_BASE}
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "add_bias_linear": a.mlp_bias,
        "add_qkv_bias": a.qkv_bias,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_softmax_in_fp32": True,
        "eos_token_id": eos_token_ids[0] if eos_token_ids else 2,
        "ffn_hidden_size": a.intermediate_size,
        "hidden_size": a.hidden_size,
        "kv_channels": a.head_dim,
        "layernorm_epsilon": a.norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": a.num_kv_heads,
        "num_attention_heads": a.num_heads,
        "num_layers": a.num_layers,
        "original_rope": True,
        "pad_token_id": 0 if pad_token_id is None else pad_token_id,
        "padded_vocab_size": a.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": a.max_position,
        "tie_word_embeddings": a.tied_head,
        "torch_dtype": dtype,
        "use_cache": True,
        **rope,
    }


# Text in which the library of tokenizer.json finds these control tokens, and no part of words.
_RENAMED = {"sop": "<sop>", "eop": "<eop>"}


def gguf_tokenizer(tokenizer: SentencePieceTokenizer, vocab_size: int) -> dict[str, GGUFValue]:
    keys = sentence_piece_gguf(tokenizer, vocab_size)
    return {
        **keys,
        "tokenizer.ggml.eos_token_id": end_of_text(tokenizer),
        "tokenizer.ggml.padding_token_id": 0,
    }


def native_tokenizer(
    tokenizer: SentencePieceTokenizer, chat_template: str | None
) -> dict[str, bytes]:
    return {
        # For Glimmer itself; transformers and vLLM take the two below.
        "tokenizer.model": tokenizer.model_bytes,
        "tokenizer.json": sentence_piece_json(tokenizer, ("[gMASK]", "<sop>"), _RENAMED),
        "tokenizer_config.json": tokenizer_config(
            eos="</s>", pad="<unk>", unk="<unk>", chat_template=chat_template
        ),
    }


def official_tokenizer(
    name: str,
) -> Callable[[SentencePieceTokenizer, str | None], dict[str, bytes]]:
    """``name`` is what tells the generations apart, whose configs are the same."""

    def files(tokenizer: SentencePieceTokenizer, _chat_template: str | None) -> dict[str, bytes]:
        config = {"name_or_path": name, "tokenizer_class": "ChatGLMTokenizer"}
        text = json.dumps(config, indent=2) + "\n"
        return {"tokenizer.model": tokenizer.model_bytes, "tokenizer_config.json": text.encode()}

    return files


def named(name: str, config: FolderConfig) -> FolderConfig:
    """A config that says which generation it is."""
    return lambda a, **rest: {"_name_or_path": name, **config(a, **rest)}


# Jinja drops a new line behind a block: those that count stand in expressions.
_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '[Round ' ~ (loop.index0 // 2 + 1) ~ ']\\n\\n问：' ~ message.content }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n答：' }}{% endif %}"
    "{% else %}{{ message.content ~ '\\n\\n' }}{% endif %}{% endfor %}"
)
_NAME = "THUDM/chatglm2-6b"
EXPORTER = Exporter(
    gguf_architecture=GGUF_ARCHITECTURE,
    gguf_keys=gguf_keys,
    gguf_tokenizer=gguf_tokenizer,
    folder=FolderFormat("native", named(_NAME, native_config), native_tokenizer, MODEL_CLASS),
    chat_template=_TEMPLATE,
    integers=FolderFormat("official", named(_NAME, official_config), official_tokenizer(_NAME)),
)
