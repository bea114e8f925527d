"""Weight names of ChatGLM2, which ChatGLM3 and GLM-4 (in its remote-code layout) share."""

from glimmer.families.weight_map import (
    OFFICIAL_PREFIX,
    Layout,
    Piece,
    WeightMap,
    gate_and_up,
    in_layer,
    stacked_qkv,
    with_parts,
)

_OFFICIAL_LAYER: dict[str, Piece | str] = {
    "attn_norm": "transformer.encoder.layers.{layer}.input_layernorm",
    **stacked_qkv("transformer.encoder.layers.{layer}.self_attention.query_key_value"),
    "attn_out": "transformer.encoder.layers.{layer}.self_attention.dense",
    "mlp_norm": "transformer.encoder.layers.{layer}.post_attention_layernorm",
    **gate_and_up("transformer.encoder.layers.{layer}.mlp.dense_h_to_4h"),
    "mlp_down": "transformer.encoder.layers.{layer}.mlp.dense_4h_to_h",
}
# transformers' GlmForCausalLM.
_NATIVE_LAYER: dict[str, Piece | str] = {
    "attn_norm": "model.layers.{layer}.input_layernorm",
    "attn_q": "model.layers.{layer}.self_attn.q_proj",
    "attn_k": "model.layers.{layer}.self_attn.k_proj",
    "attn_v": "model.layers.{layer}.self_attn.v_proj",
    "attn_out": "model.layers.{layer}.self_attn.o_proj",
    "mlp_norm": "model.layers.{layer}.post_attention_layernorm",
    **gate_and_up("model.layers.{layer}.mlp.gate_up_proj"),
    "mlp_down": "model.layers.{layer}.mlp.down_proj",
}
# llama.cpp's "chatglm".
_GGUF_LAYER: dict[str, Piece | str] = {
    "attn_norm": "blk.{layer}.attn_norm",
    **stacked_qkv("blk.{layer}.attn_qkv"),
    "attn_out": "blk.{layer}.attn_output",
    "mlp_norm": "blk.{layer}.ffn_norm",
    **gate_and_up("blk.{layer}.ffn_up"),
    "mlp_down": "blk.{layer}.ffn_down",
}
_GGUF_SPLIT = {part: "blk.{layer}." + part for part in ("attn_q", "attn_k", "attn_v")}

OFFICIAL = Layout(
    name="official",
    container="folder",
    pieces={
        "embedding.weight": Piece("transformer.embedding.word_embeddings.weight"),
        **in_layer(with_parts(_OFFICIAL_LAYER, ".weight", ".bias")),
        "final_norm.weight": Piece("transformer.encoder.final_layernorm.weight"),
        "head.weight": Piece("transformer.output_layer.weight"),
    },
    row_scale="_scale",
    prefix_encoder=OFFICIAL_PREFIX,
)
NATIVE = Layout(
    name="native",
    container="folder",
    pieces={
        "embedding.weight": Piece("model.embed_tokens.weight"),
        **in_layer(with_parts(_NATIVE_LAYER, ".weight", ".bias")),
        "final_norm.weight": Piece("model.norm.weight"),
        "head.weight": Piece("lm_head.weight"),
    },
)
_FUSED = in_layer(with_parts(_GGUF_LAYER, ".weight", ".bias"))
GGUF = Layout(
    name="gguf",
    container="gguf",
    pieces={
        "embedding.weight": Piece("token_embd.weight"),
        **_FUSED,
        # The native layout is converted with queries, keys and values apart.
        **{
            name: (_FUSED[name], piece)
            for name, piece in in_layer(with_parts(_GGUF_SPLIT, ".weight", ".bias")).items()
        },
        "final_norm.weight": Piece("output_norm.weight"),
        "head.weight": Piece("output.weight"),
    },
)

WEIGHT_MAP = WeightMap(layouts=(OFFICIAL, NATIVE, GGUF))
