"""GLM-4.5 and GLM-4.5-Air: transformers' ``glm4_moe`` and llama.cpp's ``glm4moe``."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from glimmer.architecture import Architecture, Experts
from glimmer.checkpoints import Checkpoint
from glimmer.families.chatglm2.network import gguf_network, native_network
from glimmer.families.config import Config
from glimmer.families.family import Chat, Family
from glimmer.families.glm4.tokenizer import bare_text_frame
from glimmer.families.glm45.answers import ANSWERS
from glimmer.families.glm45.chat_template import GLM45Template
from glimmer.families.glm45.export import EXPORTER
from glimmer.families.glm45.releases import RELEASES
from glimmer.families.glm45.tokenizer import (
    THINK_END,
    has_tokenizer,
    load_tokenizer,
    stop_token_ids,
)
from glimmer.families.glm45.tool_grammar import tool_grammar
from glimmer.families.glm45.tool_parser import tool_parser
from glimmer.families.glm45.weights import WEIGHT_MAP


def recognise(checkpoint: Checkpoint) -> str | None:
    if checkpoint.format == "gguf":
        if checkpoint.metadata.get("general.architecture") == "glm4moe":
            return "GGUF architecture glm4moe"
    elif checkpoint.metadata.get("model_type") == "glm4_moe":
        return "model_type glm4_moe"
    return None


def architecture(checkpoint: Checkpoint) -> Architecture:
    if checkpoint.format == "gguf":
        return _from_gguf(checkpoint)
    config = Config(checkpoint)
    network = native_network(checkpoint)
    return replace(
        network,
        # Unlike every other GLM, pairs lie half the rotated channels apart.
        rope=replace(network.rope, pairing="half"),
        qk_norm=config.flag("use_qk_norm", False),
        experts=Experts(
            num_experts=config.count("n_routed_experts"),
            num_experts_per_token=config.count("num_experts_per_tok"),
            num_shared_experts=config.count("n_shared_experts", 1),
            intermediate_size=config.count("moe_intermediate_size"),
            num_dense_layers=config.count("first_k_dense_replace", 1),
            num_groups=config.count("n_group", 1),
            num_groups_per_token=config.count("topk_group", 1),
            normalize_weights=config.flag("norm_topk_prob", True),
            routed_scale=config.number("routed_scaling_factor", 1.0),
        ),
    )


def _from_gguf(checkpoint: Checkpoint) -> Architecture:
    config = Config(checkpoint, "glm4moe.")
    network = gguf_network(checkpoint, "glm4moe.")
    return replace(
        network,
        rope=replace(network.rope, pairing="half"),
        qk_norm="blk.0.attn_q_norm.weight" in checkpoint.tensors,
        experts=Experts(
            num_experts=config.count("expert_count"),
            num_experts_per_token=config.count("expert_used_count"),
            num_shared_experts=config.count("expert_shared_count", 1),
            intermediate_size=config.count("expert_feed_forward_length"),
            num_dense_layers=config.count("leading_dense_block_count", 1),
            num_groups=config.count("expert_group_count", 1),
            num_groups_per_token=config.count("expert_group_used_count", 1),
            normalize_weights=config.flag("expert_weights_norm", True),
            routed_scale=config.number("expert_weights_scale", 1.0),
        ),
    )


FAMILY = Family(
    name="glm45",
    recognise=recognise,
    architecture=architecture,
    weight_map=WEIGHT_MAP,
    exporter=EXPORTER,
    has_tokenizer=has_tokenizer,
    tokenizer=load_tokenizer,
    chat=lambda _checkpoint, tokenizer: Chat(
        GLM45Template(tokenizer),
        tool_parser,
        ANSWERS,
        tool_grammar,
        # Asked not to think, it finds the thought closed already.
        thought_end=lambda thinking: None if thinking is False else THINK_END,
    ),
    text_frame=bare_text_frame,
    stop_token_ids=stop_token_ids,
    sampling=MappingProxyType({"temperature": 0.6, "top_p": 0.95}),
    releases=RELEASES,
)
