"""A SentencePiece model from the metadata of a GGUF file, as llama.cpp's converter writes it.

Keys and token types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md ("Tokenizer"). The
library wants a model file: its few fields that matter are written here as protocol buffers
(sentencepiece_model.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glimmer.checkpoints.metadata import get, require_list
from glimmer.errors import TokenizerError

_TOKENS = "tokenizer.ggml.tokens"
_SCORES = "tokenizer.ggml.scores"
_TYPES = "tokenizer.ggml.token_type"
_ADD_SPACE = "tokenizer.ggml.add_space_prefix"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""GGML's token types, which are SentencePiece's own."""
_BPE = 2  # TrainerSpec.ModelType


def model_from_gguf(metadata: Mapping[str, Any], path: Path) -> tuple[bytes, list[str]]:
    """The bytes of a model file, and the control tokens that follow its pieces.

    Raises:
        TokenizerError: a key is missing or malformed; the message names it.
    """
    tokens = require_list(metadata, _TOKENS, str, path, TokenizerError)
    scores = require_list(metadata, _SCORES, float, path, TokenizerError)
    types = require_list(metadata, _TYPES, int, path, TokenizerError)
    if not len(tokens) == len(scores) == len(types):
        raise TokenizerError(
            f"{path}: {_TOKENS}, {_SCORES} and {_TYPES} have {len(tokens)}, {len(scores)} and "
            f"{len(types)} items; they must be equally many"
        )
    pieces = [i for i, kind in enumerate(types) if kind in (NORMAL, BYTE)]
    if not pieces or UNKNOWN not in types:
        raise TokenizerError(f"{path}: {_TYPES} has no ordinary or no unknown token")
    end = pieces[-1] + 1
    # The rest is what the network has rows for: control tokens, and padding behind them.
    appended = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    appended = [token for token in appended if token in set(tokens[end:])]
    proto = b"".join(
        _field(1, _field(1, token.encode()) + _float(2, score) + _number(3, kind))
        for token, score, kind in zip(tokens[:end], scores, types, strict=False)
    )
    trainer = _number(3, _BPE) + _number(35, 1)  # with bytes for what has no piece
    normalizer = (
        _field(1, b"identity")
        + _number(3, get(metadata, _ADD_SPACE, bool, True, path, TokenizerError))
        + _number(4, 0)
        + _number(5, 1)
    )
    return proto + _field(2, trainer) + _field(3, normalizer), appended


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
