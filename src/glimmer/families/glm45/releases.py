"""Published checkpoints of GLM-4.5.

The config of Air is the published one; that of GLM-4.5 is rebuilt, and names on the hubs are from
memory.
"""

from __future__ import annotations

from typing import Any

from glimmer.families.release import MIT, HubRepository, Release

_AIR: dict[str, Any] = {
    "model_type": "glm4_moe",
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_qk_norm": False,
    "vocab_size": 151552,
}
_355B: dict[str, Any] = {
    **_AIR,
    "first_k_dense_replace": 3,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "num_hidden_layers": 92,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
}


def _release(title: str, config: dict[str, Any]) -> Release:
    return Release(
        name=title.lower(),
        title=title,
        licence=MIT,
        context_length=131072,
        source=HubRepository(f"zai-org/{title}", f"ZhipuAI/{title}"),
        config=config,
    )


RELEASES = (
    _release("GLM-4.5", _355B),
    _release("GLM-4.5-Base", _355B),
    _release("GLM-4.5-Air", _AIR),
    _release("GLM-4.5-Air-Base", _AIR),
)
