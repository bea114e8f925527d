"""A byte-level BPE tokenizer from the metadata of a GGUF file.

Keys and token types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md ("Tokenizer") and
enum llama_token_type in llama.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

from glimmer.checkpoints.metadata import require, require_list
from glimmer.errors import TokenizerError
from glimmer.tokenizers.byte_level_bpe import ByteLevelBPETokenizer
from glimmer.tokenizers.pre_tokenizers import GGUF_PRE_TOKENIZERS, PreTokenizer

_MODEL = "tokenizer.ggml.model"
_PRE = "tokenizer.ggml.pre"
_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_MERGES = "tokenizer.ggml.merges"


class _TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


def byte_level_bpe_from_gguf(metadata: Mapping[str, Any], path: Path) -> ByteLevelBPETokenizer:
    """The tokenizer that ``metadata`` describes; ``path`` is for messages.

    The unknown token counts as a control token: byte-level text never needs it. Keys about a
    beginning-of-text token are not looked at; what stands before a text is the chat template's.

    Raises TokenizerError, naming the key, if something is missing, malformed or not supported.
    """
    model = require(metadata, _MODEL, str, path, TokenizerError)
    if model != "gpt2":
        raise TokenizerError(
            f"{path}: {_MODEL} is {model!r}; only 'gpt2' (byte-level BPE) is read in this version"
        )
    pre_tokenizer = _pre_tokenizer(metadata, path)
    tokens = require_list(metadata, _TOKENS, str, path, TokenizerError)
    merges = require_list(metadata, _MERGES, str, path, TokenizerError)
    ids = _ids_by_type(metadata, len(tokens), path)
    try:
        return ByteLevelBPETokenizer(
            tokens,
            merges,
            pre_tokenizer=pre_tokenizer,
            control_ids=ids[_TokenType.CONTROL] + ids[_TokenType.UNKNOWN],
            added_ids=ids[_TokenType.USER_DEFINED],
            unused_ids=ids[_TokenType.UNUSED],
        )
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {_TOKENS} and {_MERGES}: {error}") from error


def _pre_tokenizer(metadata: Mapping[str, Any], path: Path) -> PreTokenizer:
    name = require(metadata, _PRE, str, path, TokenizerError)
    if name not in GGUF_PRE_TOKENIZERS:
        raise TokenizerError(
            f"{path}: {_PRE} is {name!r}; supported are {', '.join(map(repr, GGUF_PRE_TOKENIZERS))}"
        )
    return GGUF_PRE_TOKENIZERS[name]


def _ids_by_type(metadata: Mapping[str, Any], num_tokens: int, path: Path) -> dict[int, list[int]]:
    types = require_list(metadata, _TYPES, int, path, TokenizerError)
    if len(types) != num_tokens:
        raise TokenizerError(
            f"{path}: {_TYPES} has {len(types)} items but {_TOKENS} has {num_tokens}; "
            "the lists must be equally long"
        )
    ids: dict[int, list[int]] = {kind: [] for kind in _TokenType}
    for token_id, kind in enumerate(types):
        if kind not in ids:
            # 6 marks byte tokens like <0x0A>: they belong to SentencePiece vocabularies.
            raise TokenizerError(
                f"{path}: item {token_id} of {_TYPES} is {kind}; a byte-level vocabulary has "
                f"{', '.join(f'{t.value} ({t.name.lower()})' for t in _TokenType)}"
            )
        ids[kind].append(token_id)
    return ids
