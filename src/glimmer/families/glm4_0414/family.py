"""GLM-4-0414 (9B, 32B) and GLM-Z1: transformers' ``glm4`` and llama.cpp's ``glm4``."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from glimmer.architecture import Architecture
from glimmer.checkpoints import Checkpoint
from glimmer.families.chatglm2.network import gguf_network, native_network
from glimmer.families.family import Chat, Family
from glimmer.families.glm4.tokenizer import bare_text_frame
from glimmer.families.glm4.tool_grammar import tool_grammar
from glimmer.families.glm4_0414.answers import ANSWERS, THINKING_ANSWERS
from glimmer.families.glm4_0414.chat_template import THINK, THINK_END, GLM0414Template
from glimmer.families.glm4_0414.export import EXPORTER
from glimmer.families.glm4_0414.releases import RELEASES
from glimmer.families.glm4_0414.tokenizer import has_tokenizer, load_tokenizer, stop_token_ids
from glimmer.families.glm4_0414.tool_parser import tool_parser
from glimmer.families.glm4_0414.weights import WEIGHT_MAP
from glimmer.tokenizers import Tokenizer


def recognise(checkpoint: Checkpoint) -> str | None:
    key = "general.architecture" if checkpoint.format == "gguf" else "model_type"
    return f"{key} glm4" if checkpoint.metadata.get(key) == "glm4" else None


def architecture(checkpoint: Checkpoint) -> Architecture:
    if checkpoint.format == "gguf":
        network = gguf_network(checkpoint, "glm4.")
    else:
        network = native_network(checkpoint)
    return replace(network, norm_place="sandwich")


def chat(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Chat:
    thinks = _thinks(checkpoint)
    return Chat(
        GLM0414Template(tokenizer, thinks),
        lambda tools: tool_parser(tools, thinks),
        THINKING_ANSWERS if thinks else ANSWERS,
        tool_grammar,
        thought_end=lambda _thinking: THINK_END if thinks else None,
    )


def _thinks(checkpoint: Checkpoint) -> bool:
    """Whether it is a GLM-Z1: its chat template opens a thought, and its name says so."""
    if "z1" in str(checkpoint.metadata.get("general.name", checkpoint.path.name)).lower():
        return True
    template = checkpoint.metadata.get("tokenizer.chat_template")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if template is None and (file := checkpoint.file(name)) is not None:
            template = file.read_text(encoding="utf-8", errors="replace")
    return isinstance(template, str) and THINK in template


FAMILY = Family(
    name="glm4_0414",
    recognise=recognise,
    architecture=architecture,
    weight_map=WEIGHT_MAP,
    exporter=EXPORTER,
    has_tokenizer=has_tokenizer,
    tokenizer=load_tokenizer,
    chat=chat,
    text_frame=bare_text_frame,
    stop_token_ids=stop_token_ids,
    sampling=MappingProxyType({"temperature": 0.6, "top_p": 0.95}),
    releases=RELEASES,
)
