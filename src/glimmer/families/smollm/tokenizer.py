"""Byte-level BPE with ChatML's two control tokens."""

from __future__ import annotations

from glimmer.checkpoints import Checkpoint
from glimmer.errors import TokenizerError
from glimmer.families.family import TextFrame
from glimmer.tokenizers import Tokenizer, byte_level_bpe_from_gguf, byte_level_bpe_from_json

MESSAGE_START, MESSAGE_END = "<|im_start|>", "<|im_end|>"
PRE_TOKENIZER = "smollm"
"""The value of ``tokenizer.ggml.pre``."""
_FILE = "tokenizer.json"


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    if checkpoint.format == "gguf":
        return "tokenizer.ggml.model" in checkpoint.metadata
    return checkpoint.file(_FILE) is not None


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    tokenizer: Tokenizer
    if checkpoint.format == "gguf":
        tokenizer = byte_level_bpe_from_gguf(checkpoint.metadata, checkpoint.path)
    else:
        file = checkpoint.file(_FILE)
        assert file is not None, "has_tokenizer comes first"
        tokenizer = byte_level_bpe_from_json(file.read_bytes(), str(file))
    for token in (MESSAGE_START, MESSAGE_END):
        if token not in tokenizer.special_tokens:
            raise TokenizerError(
                f"The tokenizer of {checkpoint.path} has no control token {token}, which the chat "
                "format of this family needs. The file was not made from a SmolLM2 chat model."
            )
    return tokenizer


def text_frame(tokenizer: Tokenizer) -> TextFrame:
    return TextFrame(padding=tokenizer.special_tokens[MESSAGE_END])


def stop_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    return (tokenizer.special_tokens[MESSAGE_END],)
