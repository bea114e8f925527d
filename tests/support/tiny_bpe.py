"""A byte-level BPE vocabulary of a few hundred tokens, trained on a few lines in milliseconds."""

from __future__ import annotations

import functools
import json
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED_TOKEN = "<think>"

_LINES = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't.",
    "It's 2024 and there are 1234567 reasons why we'll go, they've said.",
    "def encode(text: str) -> list[int]:\n    return [ord(c) for c in text]\n",
    "你好，世界。今天天气很好，我们去散步吧。你好吗？我很好。",
    "Emoji 😀😀👍🏽 and accents: déjà vu, naïve, Ångström.",
]


@functools.cache
def tiny_bpe() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens by id and merges; all 256 bytes are tokens, control tokens are not among them."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(_LINES * 4, trainer)
    trained = json.loads(model.to_str())["model"]
    tokens = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    return tuple(tokens), tuple(" ".join(pair) for pair in trained["merges"])


def tiny_bpe_metadata(pre: str = "smollm") -> dict[str, Any]:
    """The same as a GGUF file has it, with control tokens first and an added token last."""
    tokens, merges = tiny_bpe()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*CONTROL_TOKENS, *tokens, ADDED_TOKEN],
        "tokenizer.ggml.token_type": [3] * len(CONTROL_TOKENS) + [1] * len(tokens) + [4],
        "tokenizer.ggml.merges": list(merges),
    }
