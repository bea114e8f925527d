"""Weight names of ChatGLM-6B.

lm_head.weight is the embedding once more in every file, and is not read. GGUF knows no such
network: the tensor names there are ours, in llama.cpp's style.
"""

from dataclasses import replace

from glimmer.families.weight_map import (
    OFFICIAL_PREFIX,
    Layout,
    Piece,
    WeightMap,
    in_layer,
    interleaved_qkv,
    with_parts,
)

_OFFICIAL_LAYER: dict[str, Piece | str] = {
    "attn_norm": "transformer.layers.{layer}.input_layernorm",
    **interleaved_qkv("transformer.layers.{layer}.attention.query_key_value"),
    "attn_out": "transformer.layers.{layer}.attention.dense",
    "mlp_norm": "transformer.layers.{layer}.post_attention_layernorm",
    "mlp_up": "transformer.layers.{layer}.mlp.dense_h_to_4h",
    "mlp_down": "transformer.layers.{layer}.mlp.dense_4h_to_h",
}
_GGUF_LAYER: dict[str, Piece | str] = {
    "attn_norm": "blk.{layer}.attn_norm",
    "attn_q": "blk.{layer}.attn_q",
    "attn_k": "blk.{layer}.attn_k",
    "attn_v": "blk.{layer}.attn_v",
    "attn_out": "blk.{layer}.attn_output",
    "mlp_norm": "blk.{layer}.ffn_norm",
    "mlp_up": "blk.{layer}.ffn_up",
    "mlp_down": "blk.{layer}.ffn_down",
}

WEIGHT_MAP = WeightMap(
    layouts=(
        Layout(
            name="official",
            container="folder",
            pieces={
                "embedding.weight": Piece("transformer.word_embeddings.weight"),
                **in_layer(with_parts(_OFFICIAL_LAYER, ".weight", ".bias")),
                "final_norm.weight": Piece("transformer.final_layernorm.weight"),
                "final_norm.bias": Piece("transformer.final_layernorm.bias"),
            },
            row_scale="_scale",
            copies={"lm_head.weight": "embedding.weight"},
            prefix_encoder=replace(OFFICIAL_PREFIX, embedding_is_hidden=True),
        ),
        Layout(
            name="gguf",
            container="gguf",
            pieces={
                "embedding.weight": Piece("token_embd.weight"),
                **in_layer(with_parts(_GGUF_LAYER, ".weight", ".bias")),
                "final_norm.weight": Piece("output_norm.weight"),
                "final_norm.bias": Piece("output_norm.bias"),
            },
        ),
    )
)
