"""ChatGLM-6B: GLM's blank-infilling network, trained as a chat model.

Files of the first days (before 6 April 2023) have 150528 tokens, the first 20000 of them for
images; the current ones cut those off and have 130528. Both are read.
"""

from __future__ import annotations

import math
from types import MappingProxyType

from glimmer.architecture import Architecture, Blanks, Rope
from glimmer.checkpoints import Checkpoint
from glimmer.families.chatglm.answers import ANSWERS
from glimmer.families.chatglm.chat_template import ChatGLMTemplate
from glimmer.families.chatglm.export import EXPORTER, GGUF_ARCHITECTURE, SEVERAL_BLANKS
from glimmer.families.chatglm.releases import RELEASES
from glimmer.families.chatglm.tokenizer import (
    BLANKS,
    END,
    GMASK,
    PADDING,
    START,
    TEXT_END,
    ChatGLMTokenizer,
    has_tokenizer,
    load_tokenizer,
    stop_token_ids,
)
from glimmer.families.chatglm.tool_grammar import tool_grammar
from glimmer.families.chatglm.tool_parser import tool_parser
from glimmer.families.chatglm.weights import WEIGHT_MAP
from glimmer.families.config import Config
from glimmer.families.family import BlankTexts, Chat, Family, TextFrame
from glimmer.tokenizers import Tokenizer

# The official model never tells its blocks how many layers there are: they count on 28.
RESIDUAL_SCALE = math.sqrt(2 * 28)


def recognise(checkpoint: Checkpoint) -> str | None:
    metadata = checkpoint.metadata
    if checkpoint.format == "gguf":
        if metadata.get("general.architecture") == GGUF_ARCHITECTURE:
            return f"GGUF architecture {GGUF_ARCHITECTURE}"
    elif metadata.get("model_type") == "chatglm" and "inner_hidden_size" in metadata:
        return "model_type chatglm with inner_hidden_size, a key of the first generation"
    return None


def architecture(checkpoint: Checkpoint) -> Architecture:
    return _from_gguf(checkpoint) if checkpoint.format == "gguf" else _from_config(checkpoint)


def _from_config(checkpoint: Checkpoint) -> Architecture:
    config = Config(checkpoint)
    config.require("position_encoding_2d", True, True, "so its positions have one dimension")
    # Defaults of the official config class, which are those of the first days.
    return _network(
        vocab_size=config.count("vocab_size", 150528),
        hidden_size=config.count("hidden_size", 4096),
        num_layers=config.count("num_layers", 28),
        num_heads=config.count("num_attention_heads", 32),
        intermediate_size=config.count("inner_hidden_size", 16384),
        max_position=config.count("max_sequence_length", 2048),
        norm_eps=config.number("layernorm_epsilon", 1e-5),
        start_id=config.count("bos_token_id", 150004),
        mask_id=config.count("mask_token_id", 150000),
        gmask_id=config.count("gmask_token_id", 150001),
        prefix_length=config.count("pre_seq_len", 0),
        several=config.flag(SEVERAL_BLANKS, False),
    )


def _from_gguf(checkpoint: Checkpoint) -> Architecture:
    config = Config(checkpoint, f"{GGUF_ARCHITECTURE}.")
    return _network(
        vocab_size=config.count("vocab_size"),
        hidden_size=config.count("embedding_length"),
        num_layers=config.count("block_count"),
        num_heads=config.count("attention.head_count"),
        intermediate_size=config.count("feed_forward_length"),
        max_position=config.count("context_length"),
        norm_eps=config.number("attention.layer_norm_epsilon"),
        start_id=config.count("start_token_id"),
        mask_id=config.count("mask_token_id"),
        gmask_id=config.count("gmask_token_id"),
        several=config.flag(SEVERAL_BLANKS, False),
    )


def _network(
    *,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    max_position: int,
    norm_eps: float,
    start_id: int,
    mask_id: int,
    gmask_id: int,
    prefix_length: int = 0,
    several: bool = False,
) -> Architecture:
    head_dim = hidden_size // max(num_heads, 1)
    return Architecture(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        max_position=max_position,
        rope=Rope(
            dims=head_dim // 2,
            base=10000.0,
            pairing="half",
            positions="2d",
            frequency_dtype="float16",
        ),
        norm="layer",
        norm_eps=norm_eps,
        residual="normed",
        residual_scale=RESIDUAL_SCALE,
        mask="prefix",
        blanks=Blanks(start_id=start_id, blank_ids=(gmask_id, mask_id), several=several),
        mlp="gelu_tanh",
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        prefix_length=prefix_length,
        tied_head=True,
    )


def text_frame(tokenizer: Tokenizer) -> TextFrame:
    tokens = tokenizer.special_tokens
    padding = tokens.get(PADDING, tokens[END])
    return TextFrame(behind=(tokens[GMASK], tokens[START]), padding=padding)


def _encode_blanks(tokenizer: Tokenizer, text: str) -> list[int]:
    assert isinstance(tokenizer, ChatGLMTokenizer)
    return tokenizer.encode_blanks(text)


FAMILY = Family(
    name="chatglm",
    recognise=recognise,
    architecture=architecture,
    weight_map=WEIGHT_MAP,
    exporter=EXPORTER,
    has_tokenizer=has_tokenizer,
    tokenizer=load_tokenizer,
    chat=lambda _checkpoint, tokenizer: Chat(
        ChatGLMTemplate(tokenizer), tool_parser, ANSWERS, tool_grammar
    ),
    text_frame=text_frame,
    stop_token_ids=stop_token_ids,
    blank_texts=BlankTexts(BLANKS, _encode_blanks, TEXT_END),
    sampling=MappingProxyType({"temperature": 0.95, "top_p": 0.7}),
    releases=RELEASES,
)
