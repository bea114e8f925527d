"""SmolLM2 as transformers' ``glm`` with whole heads turned, and as llama.cpp's "llama"."""

from __future__ import annotations

import json
from functools import partial

from glimmer.checkpoints.gguf_writer import GGUFValue
from glimmer.families.chatglm2 import export as chatglm2
from glimmer.families.exporter import Exporter, FolderFormat
from glimmer.families.smollm.tokenizer import MESSAGE_END, PRE_TOKENIZER
from glimmer.tokenizers import ByteLevelBPETokenizer
from glimmer.tokenizers.export import byte_level_gguf, byte_level_json, tokenizer_config

GGUF_ARCHITECTURE = "llama"
NAME = "SmolLM2"
"""What a folder calls itself, which tells it from GLM-4 in the same layout."""
# ChatML, as the published template has it.
_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def gguf_tokenizer(tokenizer: ByteLevelBPETokenizer, vocab_size: int) -> dict[str, GGUFValue]:
    end = tokenizer.special_tokens[MESSAGE_END]
    return {
        **byte_level_gguf(tokenizer, vocab_size, PRE_TOKENIZER),
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.padding_token_id": end,
    }


def tokenizer_files(
    tokenizer: ByteLevelBPETokenizer, chat_template: str | None
) -> dict[str, bytes]:
    config = json.loads(
        tokenizer_config(eos=MESSAGE_END, pad=MESSAGE_END, chat_template=chat_template)
    )
    text = json.dumps({"name_or_path": NAME, **config}, indent=2, ensure_ascii=False) + "\n"
    return {
        "tokenizer.json": byte_level_json(tokenizer),
        "tokenizer_config.json": text.encode("utf-8"),
    }


EXPORTER = Exporter(
    gguf_architecture=GGUF_ARCHITECTURE,
    gguf_keys=partial(chatglm2.gguf_keys, prefix=GGUF_ARCHITECTURE),
    gguf_tokenizer=gguf_tokenizer,
    folder=FolderFormat(
        "native",
        chatglm2.named(NAME, chatglm2.native_config),
        tokenizer_files,
        chatglm2.MODEL_CLASS,
    ),
    chat_template=_TEMPLATE,
)
