"""Weight names of GLM-4.5. The layer that predicts a second token is in no table and not read."""

from glimmer.families.weight_map import (
    Layout,
    Piece,
    WeightMap,
    expert_of,
    in_layer,
    with_parts,
)

_NATIVE_LAYER: dict[str, Piece | str] = {
    **with_parts(
        {
            "attn_q": "model.layers.{layer}.self_attn.q_proj",
            "attn_k": "model.layers.{layer}.self_attn.k_proj",
            "attn_v": "model.layers.{layer}.self_attn.v_proj",
        },
        ".weight",
        ".bias",
    ),
    **with_parts(
        {
            "attn_norm": "model.layers.{layer}.input_layernorm",
            "attn_q_norm": "model.layers.{layer}.self_attn.q_norm",
            "attn_k_norm": "model.layers.{layer}.self_attn.k_norm",
            "attn_out": "model.layers.{layer}.self_attn.o_proj",
            "mlp_norm": "model.layers.{layer}.post_attention_layernorm",
            "mlp_gate": "model.layers.{layer}.mlp.gate_proj",
            "mlp_up": "model.layers.{layer}.mlp.up_proj",
            "mlp_down": "model.layers.{layer}.mlp.down_proj",
            "router": "model.layers.{layer}.mlp.gate",
            "experts.{expert}.mlp_gate": "model.layers.{layer}.mlp.experts.{expert}.gate_proj",
            "experts.{expert}.mlp_up": "model.layers.{layer}.mlp.experts.{expert}.up_proj",
            "experts.{expert}.mlp_down": "model.layers.{layer}.mlp.experts.{expert}.down_proj",
            "shared.mlp_gate": "model.layers.{layer}.mlp.shared_experts.gate_proj",
            "shared.mlp_up": "model.layers.{layer}.mlp.shared_experts.up_proj",
            "shared.mlp_down": "model.layers.{layer}.mlp.shared_experts.down_proj",
        },
        ".weight",
    ),
    "router.bias": "model.layers.{layer}.mlp.gate.e_score_correction_bias",
}
# llama.cpp's "glm4moe".
_GGUF_LAYER: dict[str, Piece | str] = {
    **with_parts(
        {"attn_q": "blk.{layer}.attn_q", "attn_k": "blk.{layer}.attn_k",
         "attn_v": "blk.{layer}.attn_v"},
        ".weight",
        ".bias",
    ),
    **with_parts(
        {
            "attn_norm": "blk.{layer}.attn_norm",
            "attn_q_norm": "blk.{layer}.attn_q_norm",
            "attn_k_norm": "blk.{layer}.attn_k_norm",
            "attn_out": "blk.{layer}.attn_output",
            "mlp_norm": "blk.{layer}.post_attention_norm",
            "mlp_gate": "blk.{layer}.ffn_gate",
            "mlp_up": "blk.{layer}.ffn_up",
            "mlp_down": "blk.{layer}.ffn_down",
            "router": "blk.{layer}.ffn_gate_inp",
            "experts.{expert}.mlp_gate": expert_of(
                "blk.{layer}.ffn_gate_exps", lambda e, h: e.intermediate_size
            ),
            "experts.{expert}.mlp_up": expert_of(
                "blk.{layer}.ffn_up_exps", lambda e, h: e.intermediate_size
            ),
            "experts.{expert}.mlp_down": expert_of("blk.{layer}.ffn_down_exps", lambda e, h: h),
            "shared.mlp_gate": "blk.{layer}.ffn_gate_shexp",
            "shared.mlp_up": "blk.{layer}.ffn_up_shexp",
            "shared.mlp_down": "blk.{layer}.ffn_down_shexp",
        },
        ".weight",
    ),
    "router.bias": "blk.{layer}.exp_probs_b.bias",
}  # fmt: skip

WEIGHT_MAP = WeightMap(
    layouts=(
        Layout(
            name="native",
            container="folder",
            pieces={
                "embedding.weight": Piece("model.embed_tokens.weight"),
                **in_layer(_NATIVE_LAYER),
                "final_norm.weight": Piece("model.norm.weight"),
                "head.weight": Piece("lm_head.weight"),
            },
        ),
        Layout(
            name="gguf",
            container="gguf",
            pieces={
                "embedding.weight": Piece("token_embd.weight"),
                **in_layer(_GGUF_LAYER),
                "final_norm.weight": Piece("output_norm.weight"),
                "head.weight": Piece("output.weight"),
            },
        ),
    )
)
