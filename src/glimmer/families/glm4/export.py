"""GLM-4 in transformers' ``glm`` layout and llama.cpp's "chatglm"."""

from __future__ import annotations

from collections.abc import Sequence

from glimmer.checkpoints.gguf_writer import GGUFValue
from glimmer.families.chatglm2.export import (
    GGUF_ARCHITECTURE,
    MODEL_CLASS,
    gguf_keys,
    native_config,
)
from glimmer.families.exporter import Exporter, FolderFormat
from glimmer.families.glm4.tokenizer import END_OF_TEXT, GMASK, START, USER
from glimmer.tokenizers.export import (
    ByteLevelTokenizer,
    byte_level_gguf,
    byte_level_json,
    tokenizer_config,
)

# Without tools: what the published template adds for them is the model's own, and comes with it.
TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}"
    "{% set role = 'observation' if message.role == 'tool' else message.role %}"
    "{% if message.content %}<|{{ role }}|>{{ message.metadata }}\n{{ message.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def gguf_tokenizer(
    tokenizer: ByteLevelTokenizer, vocab_size: int, pre_tokenizer: str = "chatglm-bpe"
) -> dict[str, GGUFValue]:
    special = tokenizer.special_tokens
    return {
        **byte_level_gguf(tokenizer, vocab_size, pre_tokenizer),
        "tokenizer.ggml.eos_token_id": special[END_OF_TEXT],
        "tokenizer.ggml.eot_token_id": special[USER],
        "tokenizer.ggml.unknown_token_id": special[END_OF_TEXT],
        "tokenizer.ggml.padding_token_id": special[END_OF_TEXT],
    }


def tokenizer_files(
    tokenizer: ByteLevelTokenizer,
    chat_template: str | None,
    prefix: Sequence[str] = (GMASK, START),
) -> dict[str, bytes]:
    return {
        "tokenizer.json": byte_level_json(tokenizer, prefix),
        "tokenizer_config.json": tokenizer_config(
            eos=END_OF_TEXT, pad=END_OF_TEXT, chat_template=chat_template
        ),
    }


EXPORTER = Exporter(
    gguf_architecture=GGUF_ARCHITECTURE,
    gguf_keys=gguf_keys,
    gguf_tokenizer=gguf_tokenizer,
    folder=FolderFormat("native", native_config, tokenizer_files, MODEL_CLASS),
    chat_template=TEMPLATE,
)
