"""GLM-4's tokenizer: byte-level BPE, as ranks (remote-code layout), tokenizer.json or GGUF."""

from __future__ import annotations

from collections.abc import Iterable

from glimmer.checkpoints import Checkpoint
from glimmer.errors import TokenizerError
from glimmer.families.family import TextFrame
from glimmer.tokenizers import (
    RankedBPETokenizer,
    Tokenizer,
    byte_level_bpe_from_gguf,
    byte_level_bpe_from_json,
    read_ranks,
)
from glimmer.tokenizers.pre_tokenizers import GLM4_PRE_TOKENIZER

RANKS_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"
END_OF_TEXT, GMASK, START = "<|endoftext|>", "[gMASK]", "<sop>"
SYSTEM, USER = "<|system|>", "<|user|>"
ASSISTANT, OBSERVATION = "<|assistant|>", "<|observation|>"
SPECIAL_TOKENS = (
    END_OF_TEXT, "[MASK]", GMASK, "[sMASK]", START, "<eop>", SYSTEM, USER, ASSISTANT, OBSERVATION,
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
NEEDED = (END_OF_TEXT, GMASK, START, SYSTEM, USER, ASSISTANT, OBSERVATION)


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    if checkpoint.format == "gguf":
        return "tokenizer.ggml.model" in checkpoint.metadata
    return any(checkpoint.file(name) is not None for name in (JSON_FILE, RANKS_FILE))


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return load(checkpoint, NEEDED)


def load(checkpoint: Checkpoint, needed: Iterable[str]) -> Tokenizer:
    """The tokenizer of a folder or a GGUF file; its chats are made of the tokens ``needed``."""
    tokenizer: Tokenizer
    if checkpoint.format == "gguf":
        what = str(checkpoint.path)
        tokenizer = byte_level_bpe_from_gguf(checkpoint.metadata, checkpoint.path)
    elif (file := checkpoint.file(JSON_FILE)) is not None:
        what = str(file)
        tokenizer = byte_level_bpe_from_json(file.read_bytes(), what)
    else:
        file = checkpoint.file(RANKS_FILE)
        assert file is not None, "has_tokenizer comes first"
        what, data = str(file), file.read_bytes()
        tokenizer = RankedBPETokenizer(
            read_ranks(data, what),
            pre_tokenizer=GLM4_PRE_TOKENIZER,
            special_tokens=SPECIAL_TOKENS,
            model_bytes=data,
        )
    known = {**tokenizer.special_tokens, **tokenizer.added_tokens}
    if missing := [token for token in needed if token not in known]:
        raise TokenizerError(
            f"{what} has no token {', '.join(missing)}, of which this family's chats are made: it "
            "is not this model's tokenizer"
        )
    return tokenizer


def stop_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    return tuple(tokenizer.special_tokens[token] for token in (END_OF_TEXT, USER, OBSERVATION))


def text_frame(tokenizer: Tokenizer) -> TextFrame:
    tokens = tokenizer.special_tokens
    return TextFrame(before=(tokens[GMASK], tokens[START]), padding=tokens[END_OF_TEXT])


def bare_text_frame(tokenizer: Tokenizer) -> TextFrame:
    """Since GLM-4-0414 the chat template carries the prefix, and no text gets it by itself."""
    return TextFrame(padding=tokenizer.special_tokens[END_OF_TEXT])
