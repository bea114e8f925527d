"""ChatGLM3 is written as ChatGLM2 is, with a chat template and a name of its own."""

from __future__ import annotations

from dataclasses import replace

from glimmer.families.chatglm2 import export as chatglm2
from glimmer.families.exporter import FolderFormat

# The space before the content stands for the one that tokenising each part by itself would add.
_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}"
    "{% set role = 'observation' if message.role == 'tool' else message.role %}"
    "<|{{ role }}|>{{ message.metadata }}\n {{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_NAME = "THUDM/chatglm3-6b"
EXPORTER = replace(
    chatglm2.EXPORTER,
    chat_template=_TEMPLATE,
    folder=FolderFormat(
        "native",
        chatglm2.named(_NAME, chatglm2.native_config),
        chatglm2.native_tokenizer,
        chatglm2.MODEL_CLASS,
    ),
    integers=FolderFormat(
        "official",
        chatglm2.named(_NAME, chatglm2.official_config),
        chatglm2.official_tokenizer(_NAME),
    ),
)
