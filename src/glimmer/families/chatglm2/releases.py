"""Published checkpoints of ChatGLM2.

The config of the 8K release is the published one; the rope_ratio of the 32K release and the names
on the hubs are from memory.
"""

from __future__ import annotations

from typing import Any

from glimmer.families.release import HubRepository, Licence, Release

LICENCE = Licence(
    "ChatGLM2-6B License",
    "https://github.com/THUDM/ChatGLM2-6B/blob/main/MODEL_LICENSE",
    "Free for research, and for business after registration; no military or illegal use.",
    False,
)
CONFIG: dict[str, Any] = {
    "_name_or_path": "THUDM/chatglm2-6b",
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "eos_token_id": 2,
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "pad_token_id": 0,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 32768,
    "tie_word_embeddings": False,
}


def _release(name: str, context_length: int = 32768, **config: Any) -> Release:
    return Release(
        name=name,
        title=name.replace("chatglm", "ChatGLM").replace("-6b", "-6B"),
        licence=LICENCE,
        context_length=context_length,
        source=HubRepository(f"zai-org/{name}", f"ZhipuAI/{name}", (f"THUDM/{name}",)),
        config={**CONFIG, **config},
    )


RELEASES = (
    _release("chatglm2-6b"),
    _release("chatglm2-6b-int4", quantization_bit=4),
    _release("chatglm2-6b-32k", rope_ratio=16),
    _release("chatglm2-6b-32k-int4", rope_ratio=16, quantization_bit=4),
)
