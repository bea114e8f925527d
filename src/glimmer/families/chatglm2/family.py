"""ChatGLM2-6B and ChatGLM2-6B-32K.

The configs of ChatGLM2 and ChatGLM3 hold the same keys: only the name that a checkpoint gives
itself tells them apart.
"""

from __future__ import annotations

from types import MappingProxyType

from glimmer.architecture import Architecture
from glimmer.checkpoints import Checkpoint
from glimmer.families.chatglm.tool_grammar import tool_grammar
from glimmer.families.chatglm2.answers import ANSWERS
from glimmer.families.chatglm2.chat_template import ChatGLM2Template
from glimmer.families.chatglm2.export import EXPORTER
from glimmer.families.chatglm2.network import (
    gguf_network,
    is_llama_cpp_layout,
    is_native_layout,
    is_remote_layout,
    names_itself,
    native_network,
    remote_network,
)
from glimmer.families.chatglm2.releases import RELEASES
from glimmer.families.chatglm2.tokenizer import (
    has_tokenizer,
    load_tokenizer,
    stop_token_ids,
    text_frame,
)
from glimmer.families.chatglm2.tool_parser import tool_parser
from glimmer.families.chatglm2.weights import WEIGHT_MAP
from glimmer.families.config import Config
from glimmer.families.family import Chat, Family


def recognise(checkpoint: Checkpoint) -> str | None:
    name = names_itself(checkpoint)
    if is_llama_cpp_layout(checkpoint):
        if checkpoint.metadata.get("tokenizer.ggml.model") != "llama":
            return None
        if "<|user|>" in checkpoint.metadata.get("tokenizer.ggml.tokens", ()):
            return None
        return "GGUF architecture chatglm, a SentencePiece vocabulary without role tokens"
    if is_native_layout(checkpoint):  # as Glimmer converts it
        return f"model_type glm that calls itself {name!r}" if "chatglm2" in name else None
    # GLM-4 ends an answer with any of several tokens, so that its config has a list of them.
    if not is_remote_layout(checkpoint) or isinstance(
        checkpoint.metadata.get("eos_token_id"), list
    ):
        return None
    if "chatglm3" in name:
        return None
    if "chatglm2" in name:
        return f"remote-code config that calls itself {name!r}"
    return "the network of ChatGLM2 and ChatGLM3; nothing says which of them"


def architecture(checkpoint: Checkpoint) -> Architecture:
    if checkpoint.format == "gguf":
        return gguf_network(checkpoint, "chatglm.")
    if is_native_layout(checkpoint):
        return native_network(checkpoint)
    # The 32K release divides positions; later families raise the base of the rotation instead.
    ratio = Config(checkpoint).number("rope_ratio", 1.0)
    return remote_network(checkpoint, rope_linear_scale=ratio)


FAMILY = Family(
    name="chatglm2",
    recognise=recognise,
    architecture=architecture,
    weight_map=WEIGHT_MAP,
    exporter=EXPORTER,
    has_tokenizer=has_tokenizer,
    tokenizer=load_tokenizer,
    chat=lambda _checkpoint, tokenizer: Chat(
        ChatGLM2Template(tokenizer), tool_parser, ANSWERS, tool_grammar
    ),
    text_frame=text_frame,
    stop_token_ids=stop_token_ids,
    sampling=MappingProxyType({"temperature": 0.8, "top_p": 0.8}),
    releases=RELEASES,
)
