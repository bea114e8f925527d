"""Text to ids and back. Knows no chat and no family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control tokens by their text; user text never becomes one of them unless allowed."""
        ...

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of ``text``, without any prefix that a chat template adds.

        With ``allow_special``, the texts of control tokens that occur in ``text`` become their ids.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; control tokens give nothing, broken UTF-8 gives U+FFFD."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one id, possibly part of a character; b"" for control tokens."""
        ...
