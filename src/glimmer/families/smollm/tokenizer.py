"""Byte-level BPE with ChatML's two control tokens."""

from __future__ import annotations

from glimmer.checkpoints import Checkpoint
from glimmer.errors import TokenizerError
from glimmer.tokenizers import Tokenizer, byte_level_bpe_from_gguf

MESSAGE_START, MESSAGE_END = "<|im_start|>", "<|im_end|>"


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    return "tokenizer.ggml.model" in checkpoint.metadata


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    tokenizer = byte_level_bpe_from_gguf(checkpoint.metadata, checkpoint.path)
    for token in (MESSAGE_START, MESSAGE_END):
        if token not in tokenizer.special_tokens:
            raise TokenizerError(
                f"The tokenizer of {checkpoint.path} has no control token {token}, which the chat "
                "format of this family needs. The file was not made from a SmolLM2 chat model."
            )
    return tokenizer


def stop_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    return (tokenizer.special_tokens[MESSAGE_END],)
