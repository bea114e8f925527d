"""ChatGLM-6B's numbers: the official config, and GGUF under keys of our own.

No other engine runs this network from GGUF. The keys follow llama.cpp's style with the
architecture "chatglm1"; docs/formats.md tells them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from glimmer.architecture import Architecture
from glimmer.checkpoints.gguf_writer import GGUFValue
from glimmer.errors import InvalidParameterError
from glimmer.families.chatglm.tokenizer import (
    END,
    FILE,
    GGUF_IMAGE_TOKENS,
    GGUF_MODEL,
    GMASK,
    MASK,
    START,
    TEXT_END,
    ChatGLMTokenizer,
)
from glimmer.families.exporter import Exporter, FolderFormat

GGUF_ARCHITECTURE = "chatglm1"
MODEL_TYPE = "chatglm"
"""Of config.json, where four generations have it in common."""
SEVERAL_BLANKS = "several_blanks"
"""Our key in a config, for networks that were trained to fill the blanks of a text one after
another, such as those of `glimmer pretrain`. The releases do not tell."""


def gguf_keys(a: Architecture) -> dict[str, Any]:
    assert a.blanks is not None
    if a.prefix_length:
        raise InvalidParameterError(
            "GGUF has no place for a trained prefix (P-Tuning v2), so this model cannot be "
            "converted to it. Use it as it is."
        )
    gmask_id, mask_id = a.blanks.blank_ids
    keys = {
        "context_length": a.max_position,
        "embedding_length": a.hidden_size,
        "feed_forward_length": a.intermediate_size,
        "block_count": a.num_layers,
        "attention.head_count": a.num_heads,
        "attention.layer_norm_epsilon": a.norm_eps,
        "vocab_size": a.vocab_size,
        "start_token_id": a.blanks.start_id,
        "mask_token_id": mask_id,
        "gmask_token_id": gmask_id,
    }
    if a.blanks.several:
        keys[SEVERAL_BLANKS] = True
    return {f"{GGUF_ARCHITECTURE}.{key}": value for key, value in keys.items()}


def official_config(
    a: Architecture, *, dtype: str, eos_token_ids: Sequence[int], pad_token_id: int | None
) -> dict[str, Any]:
    """config.json of the official code, which reads ``auto_map`` only where that code lies."""
    assert a.blanks is not None
    gmask_id, mask_id = a.blanks.blank_ids
    own = {SEVERAL_BLANKS: True} if a.blanks.several else {}
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": MODEL_TYPE,
        "bos_token_id": a.blanks.start_id,
        "eos_token_id": eos_token_ids[0] if eos_token_ids else a.blanks.start_id + 1,
        "gmask_token_id": gmask_id,
        "hidden_size": a.hidden_size,
        "inner_hidden_size": a.intermediate_size,
        "layernorm_epsilon": a.norm_eps,
        "mask_token_id": mask_id,
        "max_sequence_length": a.max_position,
        "num_attention_heads": a.num_heads,
        "num_layers": a.num_layers,
        "pad_token_id": 3 if pad_token_id is None else pad_token_id,
        "position_encoding_2d": True,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": a.vocab_size,
        **own,
    }


def gguf_tokenizer(tokenizer: ChatGLMTokenizer, _vocab_size: int) -> dict[str, GGUFValue]:
    """The whole file: its normaliser has no place in llama.cpp's keys."""
    return {
        GGUF_MODEL: np.frombuffer(tokenizer.model_bytes, np.uint8),
        GGUF_IMAGE_TOKENS: tokenizer.num_image_tokens,
    }


def official_tokenizer(tokenizer: ChatGLMTokenizer, _chat_template: str | None) -> dict[str, bytes]:
    config = {
        "tokenizer_class": "ChatGLMTokenizer",
        "bos_token": START,
        "eos_token": END,
        "end_token": TEXT_END,
        "gmask_token": GMASK,
        "mask_token": MASK,
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "do_lower_case": False,
        "num_image_tokens": tokenizer.num_image_tokens,
        "remove_space": False,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {FILE: tokenizer.model_bytes, "tokenizer_config.json": text.encode("utf-8")}


_OFFICIAL = FolderFormat("official", official_config, official_tokenizer)
EXPORTER = Exporter(
    gguf_architecture=GGUF_ARCHITECTURE,
    gguf_keys=gguf_keys,
    gguf_tokenizer=gguf_tokenizer,
    folder=_OFFICIAL,
    integers=_OFFICIAL,
)
