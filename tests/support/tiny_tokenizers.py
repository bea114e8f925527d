"""A tokenizer of a few hundred tokens for every family, made here from a few lines of text."""

from __future__ import annotations

import base64
import io
import json
from functools import cache

import sentencepiece

from glimmer.families.glm4.tokenizer import SPECIAL_TOKENS
from glimmer.families.glm45.tokenizer import STRUCTURE
from glimmer.tokenizers import RankedBPETokenizer
from glimmer.tokenizers.export import byte_level_json
from glimmer.tokenizers.pre_tokenizers import GLM4_PRE_TOKENIZER

TEXT = [
    "你好，世界！今天天气怎么样？",
    "The quick brown fox jumps over the lazy dog; the dog sleeps.",
    "人工智能助手可以回答问题，写代码，也可以聊天。",
    "def f(x): return x + 1  # a comment, and 123 numbers",
    "问：你是谁？答：我是一个助手。",
]
_MERGES = ("th", "the", "in", "an", "er", " a", " t", " th", " the", "你好", "\n\n")


@cache
def sentence_piece(kind: str, controls: tuple[str, ...] = (), users: tuple[str, ...] = ()) -> bytes:
    """The bytes of a model file; ``kind`` is "bpe" or "unigram"."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4),
        model_writer=model,
        model_type=kind,
        vocab_size=380 + len(controls) + len(users),
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=kind == "unigram",
        normalization_rule_name="identity" if kind == "bpe" else "nmt_nfkc",
        control_symbols=list(controls),
        user_defined_symbols=list(users),
        character_coverage=1.0,
        minloglevel=2,
    )
    return model.getvalue()


@cache
def chatglm_model() -> bytes:
    blanks = tuple(f"<|blank_{n}|>" for n in range(2, 81))
    controls = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
    return sentence_piece("unigram", controls, ("<n>", "<|tab|>", *blanks))


def ranks() -> list[bytes]:
    tokens = [bytes([byte]) for byte in range(256)]
    for merge in _MERGES:
        data = merge.encode()
        # Every token must be made of two others.
        for end in range(2, len(data) + 1):
            if data[:end] not in tokens:
                tokens.append(data[:end])
    return tokens


def ranks_file() -> bytes:
    lines = [b"%s %d" % (base64.b64encode(token), i) for i, token in enumerate(ranks())]
    return b"\n".join(lines) + b"\n"


@cache
def tokenizer_json(added: tuple[str, ...] = ()) -> bytes:
    tokenizer = RankedBPETokenizer(
        ranks(), pre_tokenizer=GLM4_PRE_TOKENIZER, special_tokens=SPECIAL_TOKENS
    )
    file = json.loads(byte_level_json(tokenizer))
    for token in added:
        last = file["added_tokens"][-1]
        file["added_tokens"].append(
            {**last, "id": last["id"] + 1, "content": token, "special": False}
        )
    return json.dumps(file).encode()


def files(family: str, layout: str) -> dict[str, bytes]:
    """Files by name, as they lie in a folder of that layout."""
    if family == "chatglm":
        config = json.dumps({"num_image_tokens": 0}).encode()
        return {"ice_text.model": chatglm_model(), "tokenizer_config.json": config}
    if family in ("chatglm2", "chatglm3"):
        return {"tokenizer.model": sentence_piece("bpe")}
    if family == "glm4" and layout == "official":
        return {"tokenizer.model": ranks_file()}
    return {"tokenizer.json": tokenizer_json(STRUCTURE if family == "glm45" else ())}
