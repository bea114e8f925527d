"""Published checkpoints of GLM-4-0414 and GLM-Z1.

Configs are rebuilt from what is known of the networks; names on the hubs are from memory.
"""

from __future__ import annotations

from typing import Any

from glimmer.families.release import MIT, HubRepository, Release

_9B: dict[str, Any] = {
    "model_type": "glm4",
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 151552,
}
_32B: dict[str, Any] = {
    **_9B,
    "attention_bias": False,
    "hidden_size": 6144,
    "intermediate_size": 23040,
    "num_attention_heads": 48,
    "num_hidden_layers": 61,
}


def _release(title: str, config: dict[str, Any]) -> Release:
    return Release(
        name=title.lower(),
        title=title,
        licence=MIT,
        context_length=32768,
        source=HubRepository(f"zai-org/{title}", f"ZhipuAI/{title}", (f"THUDM/{title}",)),
        config=config,
    )


RELEASES = (
    _release("GLM-4-9B-0414", _9B),
    _release("GLM-4-32B-0414", _32B),
    _release("GLM-4-32B-Base-0414", _32B),
    _release("GLM-Z1-9B-0414", _9B),
    _release("GLM-Z1-32B-0414", _32B),
    _release("GLM-Z1-Rumination-32B-0414", {**_32B, "num_key_value_heads": 8}),
)
