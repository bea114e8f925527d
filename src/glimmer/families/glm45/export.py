"""GLM-4.5's numbers as transformers' ``glm4_moe`` and llama.cpp's ``glm4moe`` want them."""

from __future__ import annotations

from functools import partial
from typing import Any

from glimmer.architecture import Architecture
from glimmer.families.chatglm2 import export as chatglm2
from glimmer.families.exporter import Exporter, FolderFormat
from glimmer.families.glm4 import export as glm4
from glimmer.families.glm4_0414 import export as glm4_0414

GGUF_ARCHITECTURE = "glm4moe"
_MODEL_CLASS = "Glm4MoeForCausalLM"
_SIGMOID = 2  # llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID


def gguf_keys(a: Architecture) -> dict[str, Any]:
    assert a.experts is not None
    keys = {
        "expert_count": a.experts.num_experts,
        "expert_used_count": a.experts.num_experts_per_token,
        "expert_shared_count": a.experts.num_shared_experts,
        "expert_feed_forward_length": a.experts.intermediate_size,
        "leading_dense_block_count": a.experts.num_dense_layers,
        "expert_group_count": a.experts.num_groups,
        "expert_group_used_count": a.experts.num_groups_per_token,
        "expert_gating_func": _SIGMOID,
        "expert_weights_norm": a.experts.normalize_weights,
        "expert_weights_scale": a.experts.routed_scale,
    }
    network = chatglm2.gguf_keys(a, GGUF_ARCHITECTURE)
    return network | {f"{GGUF_ARCHITECTURE}.{key}": value for key, value in keys.items()}


def native_config(a: Architecture, **rest: Any) -> dict[str, Any]:
    assert a.experts is not None
    config = chatglm2.native_config(a, model_type="glm4_moe", model_class=_MODEL_CLASS, **rest)
    return config | {
        "first_k_dense_replace": a.experts.num_dense_layers,
        "moe_intermediate_size": a.experts.intermediate_size,
        "n_group": a.experts.num_groups,
        "n_routed_experts": a.experts.num_experts,
        "n_shared_experts": a.experts.num_shared_experts,
        "norm_topk_prob": a.experts.normalize_weights,
        "num_experts_per_tok": a.experts.num_experts_per_token,
        "num_nextn_predict_layers": 0,
        "routed_scaling_factor": a.experts.routed_scale,
        "topk_group": a.experts.num_groups_per_token,
        "use_qk_norm": a.qk_norm,
    }


# Without tools: what the published template adds for them is the model's own, and comes with it.
_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ '<|assistant|>\\n<think></think>\\n' ~ message.content }}"
    "{% elif message.role == 'tool' %}"
    "{{ '<|observation|>\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}"
    "{% else %}{{ '<|' ~ message.role ~ '|>\\n' ~ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EXPORTER = Exporter(
    gguf_architecture=GGUF_ARCHITECTURE,
    gguf_keys=gguf_keys,
    gguf_tokenizer=glm4_0414.gguf_tokenizer,
    folder=FolderFormat(
        "native", native_config, partial(glm4.tokenizer_files, prefix=()), _MODEL_CLASS
    ),
    chat_template=_TEMPLATE,
)
