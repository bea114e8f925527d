"""Weight names of the GGUF file, and of transformers' GlmForCausalLM.

GGUF stores query and key rows in the interleaved order already, which is GLM's: no permutation.
"""

from glimmer.families.chatglm2.weights import NATIVE
from glimmer.families.weight_map import Layout, Piece, WeightMap, in_layer, with_parts

_LAYER = {
    "attn_norm": "blk.{layer}.attn_norm",
    "attn_q": "blk.{layer}.attn_q",
    "attn_k": "blk.{layer}.attn_k",
    "attn_v": "blk.{layer}.attn_v",
    "attn_out": "blk.{layer}.attn_output",
    "mlp_norm": "blk.{layer}.ffn_norm",
    "mlp_gate": "blk.{layer}.ffn_gate",
    "mlp_up": "blk.{layer}.ffn_up",
    "mlp_down": "blk.{layer}.ffn_down",
}
GGUF = Layout(
    name="gguf",
    container="gguf",
    pieces={
        "embedding.weight": Piece("token_embd.weight"),
        **in_layer(with_parts(_LAYER, ".weight")),
        "final_norm.weight": Piece("output_norm.weight"),
        "head.weight": Piece("output.weight"),
    },
)
WEIGHT_MAP = WeightMap(layouts=(GGUF, NATIVE))
