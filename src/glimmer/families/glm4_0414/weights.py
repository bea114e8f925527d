"""Weight names of GLM-4-0414: GLM-4's, and a norm after attention and after the MLP."""

from dataclasses import replace

from glimmer.families.chatglm2.weights import GGUF, NATIVE
from glimmer.families.weight_map import WeightMap, in_layer, with_parts

_NATIVE_NORMS = {
    "attn_post_norm": "model.layers.{layer}.post_self_attn_layernorm",
    "mlp_post_norm": "model.layers.{layer}.post_mlp_layernorm",
}
# llama.cpp's "glm4".
_GGUF_NORMS = {
    "attn_post_norm": "blk.{layer}.post_attention_norm",
    "mlp_post_norm": "blk.{layer}.post_ffw_norm",
}

WEIGHT_MAP = WeightMap(
    layouts=(
        replace(NATIVE, pieces={**NATIVE.pieces, **in_layer(with_parts(_NATIVE_NORMS, ".weight"))}),
        replace(GGUF, pieces={**GGUF.pieces, **in_layer(with_parts(_GGUF_NORMS, ".weight"))}),
    )
)
