"""Byte-level BPE from a list of ranks, on the library ``tiktoken``.

A ranks file has a line for each token, the most frequent merge first: its bytes in base64, and its
rank, which is its id.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import tiktoken

from glimmer.errors import InvalidParameterError, TokenizerError
from glimmer.tokenizers.detokenizer import ByteDetokenizer
from glimmer.tokenizers.pre_tokenizers import PreTokenizer
from glimmer.tokenizers.text import (
    alternatives,
    check_unicode,
    no_such_token,
    refuse_pointer,
)

MAX_SPACE_RUN = 100_000
"""The library backtracks over white space, and overflows its stack on longer runs."""
_ENDLESS_SPACE = re.compile(rf"\s{{{MAX_SPACE_RUN + 1}}}")


def read_ranks(data: bytes, what: str) -> list[bytes]:
    """The bytes of each token, by id; ``what`` names the file in errors.

    Raises:
        TokenizerError: not such a file, or a damaged one; the message names the line.
    """
    refuse_pointer(data, what)
    tokens = []
    for number, line in enumerate(data.splitlines()):
        word, _, rank = line.partition(b" ")
        try:
            tokens.append(base64.b64decode(word, validate=True))
        except binascii.Error as error:
            raise TokenizerError(f"{what}, line {number + 1}: no base64 ({error})") from error
        if rank != b"%d" % number:
            raise TokenizerError(
                f"{what}, line {number + 1}: rank {rank[:20]!r} where {number} is due; the file is "
                "damaged or is no list of ranks: download it again"
            )
    if len(set(tokens)) != len(tokens) or b"" in tokens:
        raise TokenizerError(f"{what} has a token twice, or an empty one: download it again")
    missing = [byte for byte in range(256) if bytes([byte]) not in set(tokens[:512])]
    if missing:
        raise TokenizerError(
            f"{what} has no token for the byte {missing[0]:#04x}, which some text needs; the file "
            "is truncated or is no list of ranks: download it again"
        )
    return tokens


class RankedBPETokenizer:
    """Ranks, and control tokens that follow them in the vocabulary. Threads may share it."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        *,
        pre_tokenizer: PreTokenizer,
        special_tokens: Sequence[str] = (),
        model_bytes: bytes = b"",
    ) -> None:
        self.tokens = tokens
        """The bytes of each ordinary token, by id."""
        self.pre_tokenizer = pre_tokenizer
        self.model_bytes = model_bytes
        """The file that the ranks came from."""
        self._special_tokens = MappingProxyType(
            {token: len(tokens) + i for i, token in enumerate(special_tokens)}
        )
        self._vocab_size = len(tokens) + len(special_tokens)
        self._special_pattern = alternatives(self._special_tokens)
        self._encoding = tiktoken.Encoding(
            "ranks",
            pat_str=pre_tokenizer.pattern,
            mergeable_ranks={token: i for i, token in enumerate(tokens)},
            special_tokens={},
        )

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._special_tokens

    @property
    def added_tokens(self) -> Mapping[str, int]:
        return MappingProxyType({})

    def encode(
        self, text: str, allow_special: bool = False, *, allow_added: bool = True
    ) -> list[int]:
        check_unicode(text)
        if (run := _ENDLESS_SPACE.search(text)) is not None:
            raise InvalidParameterError(
                f"the text has more than {MAX_SPACE_RUN} white spaces in a row at position "
                f"{run.start()}, which this tokenizer cannot take; shorten them"
            )
        if not allow_special or self._special_pattern is None:
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        # re.split with one group: text between matches at even places, matches at odd ones.
        for place, part in enumerate(self._special_pattern.split(text)):
            if place % 2:
                ids.append(self._special_tokens[part])
            elif part:
                ids += self._encoding.encode_ordinary(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def detokenizer(self) -> ByteDetokenizer:
        return ByteDetokenizer(self.token_bytes)

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one id, possibly part of a character; b"" for control tokens.

        Raises InvalidParameterError for an unknown id.
        """
        if not 0 <= token_id < self._vocab_size:
            raise no_such_token(token_id, self._vocab_size)
        return self.tokens[token_id] if token_id < len(self.tokens) else b""
