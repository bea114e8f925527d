"""Weight names. GGUF stores query and key rows in the interleaved order already: no permutation."""

from glimmer.families.weight_map import WeightMap

WEIGHT_MAP = WeightMap(
    gguf={
        "embedding.weight": "token_embd.weight",
        "layers.{layer}.attn_norm.weight": "blk.{layer}.attn_norm.weight",
        "layers.{layer}.attn_q.weight": "blk.{layer}.attn_q.weight",
        "layers.{layer}.attn_k.weight": "blk.{layer}.attn_k.weight",
        "layers.{layer}.attn_v.weight": "blk.{layer}.attn_v.weight",
        "layers.{layer}.attn_out.weight": "blk.{layer}.attn_output.weight",
        "layers.{layer}.mlp_norm.weight": "blk.{layer}.ffn_norm.weight",
        "layers.{layer}.mlp_gate.weight": "blk.{layer}.ffn_gate.weight",
        "layers.{layer}.mlp_up.weight": "blk.{layer}.ffn_up.weight",
        "layers.{layer}.mlp_down.weight": "blk.{layer}.ffn_down.weight",
        "final_norm.weight": "output_norm.weight",
        "head.weight": "output.weight",
    }
)
