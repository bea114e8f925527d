"""GLM-4-9B: the remote-code layout, transformers' ``glm`` layout, and GGUF."""

from __future__ import annotations

from types import MappingProxyType

from glimmer.architecture import Architecture
from glimmer.checkpoints import Checkpoint
from glimmer.families.chatglm2.network import (
    ROPE_BASE,
    gguf_network,
    is_llama_cpp_layout,
    is_native_layout,
    is_remote_layout,
    names_itself,
    native_network,
    remote_network,
)
from glimmer.families.chatglm2.weights import WEIGHT_MAP
from glimmer.families.config import Config
from glimmer.families.family import Chat, Family
from glimmer.families.glm4.answers import ANSWERS
from glimmer.families.glm4.chat_template import GLM4Template
from glimmer.families.glm4.export import EXPORTER
from glimmer.families.glm4.releases import RELEASES
from glimmer.families.glm4.tokenizer import (
    has_tokenizer,
    load_tokenizer,
    stop_token_ids,
    text_frame,
)
from glimmer.families.glm4.tool_grammar import tool_grammar
from glimmer.families.glm4.tool_parser import tool_parser


def recognise(checkpoint: Checkpoint) -> str | None:
    metadata = checkpoint.metadata
    if is_llama_cpp_layout(checkpoint):
        if metadata.get("tokenizer.ggml.model") == "llama":
            return None
        return "GGUF architecture chatglm, a byte-level vocabulary"
    if is_native_layout(checkpoint):
        # ChatGLM2 and ChatGLM3 run in this layout too, and say so.
        return None if names_itself(checkpoint) else "model_type glm"
    if is_remote_layout(checkpoint) and isinstance(metadata.get("eos_token_id"), list):
        return "remote-code config with a list of end tokens"
    return None


def architecture(checkpoint: Checkpoint) -> Architecture:
    if checkpoint.format == "gguf":
        return gguf_network(checkpoint, "chatglm.")
    if is_native_layout(checkpoint):
        return native_network(checkpoint)
    ratio = Config(checkpoint).number("rope_ratio", 1.0)
    return remote_network(checkpoint, rope_base=ROPE_BASE * ratio)


FAMILY = Family(
    name="glm4",
    recognise=recognise,
    architecture=architecture,
    weight_map=WEIGHT_MAP,
    exporter=EXPORTER,
    has_tokenizer=has_tokenizer,
    tokenizer=load_tokenizer,
    chat=lambda _checkpoint, tokenizer: Chat(
        GLM4Template(tokenizer), tool_parser, ANSWERS, tool_grammar
    ),
    text_frame=text_frame,
    stop_token_ids=stop_token_ids,
    sampling=MappingProxyType({"temperature": 0.8, "top_p": 0.8}),
    releases=RELEASES,
)
