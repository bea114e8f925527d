"""GLM-4-0414 in transformers' ``glm4`` layout and llama.cpp's "glm4"."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from glimmer.architecture import Architecture
from glimmer.checkpoints.gguf_writer import GGUFValue
from glimmer.families.chatglm2 import export as chatglm2
from glimmer.families.exporter import Exporter, FolderFormat
from glimmer.families.glm4 import export as glm4
from glimmer.tokenizers.export import ByteLevelTokenizer

GGUF_ARCHITECTURE = "glm4"
_PRE_TOKENIZER = "glm4"
_MODEL_CLASS = "Glm4ForCausalLM"


def native_config(a: Architecture, **rest: Any) -> dict[str, Any]:
    return chatglm2.native_config(a, model_type="glm4", model_class=_MODEL_CLASS, **rest)


def gguf_tokenizer(tokenizer: ByteLevelTokenizer, vocab_size: int) -> Mapping[str, GGUFValue]:
    return glm4.gguf_tokenizer(tokenizer, vocab_size, _PRE_TOKENIZER)


EXPORTER = Exporter(
    gguf_architecture=GGUF_ARCHITECTURE,
    gguf_keys=partial(chatglm2.gguf_keys, prefix=GGUF_ARCHITECTURE),
    gguf_tokenizer=gguf_tokenizer,
    # The chat template carries the prefix: no text gets it by itself.
    folder=FolderFormat(
        "native", native_config, partial(glm4.tokenizer_files, prefix=()), _MODEL_CLASS
    ),
    chat_template=glm4.TEMPLATE,
)
