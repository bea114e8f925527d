"""Published checkpoints of GLM-4-9B.

The config of the chat model is the published one; those of the others are rebuilt from it, and the
names on the hubs are from memory.
"""

from __future__ import annotations

from typing import Any

from glimmer.families.release import HubRepository, Licence, Release

LICENCE = Licence(
    "The glm-4-9b License",
    "https://huggingface.co/THUDM/glm-4-9b/blob/main/LICENSE",
    'Free for research, and for business after registration; say "Built with glm-4".',
    False,
)
_REMOTE: dict[str, Any] = {
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "eos_token_id": [151329, 151336, 151338],
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 40,
    "padded_vocab_size": 151552,
    "pad_token_id": 151329,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": 500,
    "seq_length": 131072,
    "tie_word_embeddings": False,
}
_NATIVE: dict[str, Any] = {
    "model_type": "glm",
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": False,
    "vocab_size": 151552,
}
_1M = 1048576


def _release(name: str, context_length: int, config: dict[str, Any]) -> Release:
    return Release(
        name=name,
        title=name.replace("glm-4-9b", "GLM-4-9B").replace("chat", "Chat").replace("1m", "1M"),
        licence=LICENCE,
        context_length=context_length,
        source=HubRepository(f"zai-org/{name}", f"ZhipuAI/{name}", (f"THUDM/{name}",)),
        config=config,
    )


RELEASES = (
    _release("glm-4-9b", 8192, {**_REMOTE, "seq_length": 8192, "rope_ratio": 1}),
    _release("glm-4-9b-chat", 131072, _REMOTE),
    _release(
        "glm-4-9b-chat-1m",
        _1M,
        {**_REMOTE, "seq_length": _1M, "rope_ratio": 10000, "multi_query_group_num": 4},
    ),
    _release(
        "glm-4-9b-hf",
        8192,
        {**_NATIVE, "max_position_embeddings": 8192, "rope_theta": 10000.0},
    ),
    _release("glm-4-9b-chat-hf", 131072, _NATIVE),
    _release(
        "glm-4-9b-chat-1m-hf",
        _1M,
        {
            **_NATIVE,
            "max_position_embeddings": _1M,
            "rope_theta": 100000000.0,
            "num_key_value_heads": 4,
        },
    ),
)
