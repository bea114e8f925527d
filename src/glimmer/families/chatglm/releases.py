"""Published checkpoints of ChatGLM-6B.

The config is the published one; names on the hubs are from memory.
"""

from __future__ import annotations

from typing import Any

from glimmer.families.release import HubRepository, Licence, Release

LICENCE = Licence(
    "ChatGLM-6B Model License",
    "https://github.com/THUDM/ChatGLM-6B/blob/main/MODEL_LICENSE",
    "Free for research, and for business after registration; no military or illegal use.",
    False,
)
_CONFIG: dict[str, Any] = {
    "model_type": "chatglm",
    "bos_token_id": 130004,
    "eos_token_id": 130005,
    "mask_token_id": 130000,
    "gmask_token_id": 130001,
    "pad_token_id": 3,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "layernorm_epsilon": 1e-05,
    "max_sequence_length": 2048,
    "num_attention_heads": 32,
    "num_layers": 28,
    "position_encoding_2d": True,
    "vocab_size": 130528,
}


def _release(name: str, title: str, **config: Any) -> Release:
    return Release(
        name=name,
        title=title,
        licence=LICENCE,
        context_length=2048,
        source=HubRepository(f"zai-org/{name}", f"ZhipuAI/{title}", (f"THUDM/{name}",)),
        config={**_CONFIG, **config},
    )


RELEASES = (
    _release("chatglm-6b", "ChatGLM-6B"),
    _release("chatglm-6b-int8", "ChatGLM-6B-int8", quantization_bit=8),
    _release("chatglm-6b-int4", "ChatGLM-6B-int4", quantization_bit=4),
    _release(
        "chatglm-6b-int4-qe",
        "ChatGLM-6B-int4-qe",
        quantization_bit=4,
        quantization_embeddings=True,
    ),
)
