"""Text to ids and back. Knows no chat and no family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from glimmer.tokenizers.detokenizer import Detokenizer


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int:
        """Ids that have a meaning; a network may have rows for more."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control tokens by their text; user text never becomes one of them unless allowed."""
        ...

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Ordinary text that is always one token, such as "<think>", by that text."""
        ...

    def encode(
        self, text: str, allow_special: bool = False, *, allow_added: bool = True
    ) -> list[int]:
        """Ids of ``text``, without any prefix that a chat template adds.

        With ``allow_special``, the texts of control tokens that occur in ``text`` become their ids,
        where the official tokenizer does so. Without ``allow_added``, no added token occurs in the
        ids: what a chat template gives a meaning cannot be forged by what a user writes.

        Raises:
            InvalidParameterError: half of a surrogate pair, which is not a character.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``, as the official tokenizer's without special tokens.

        Raises:
            InvalidParameterError: an id that is not below ``vocab_size``.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id adds to a text, a leading space included; none for what is not
        printed.

        Raises:
            InvalidParameterError: an id that is not below ``vocab_size``.
        """
        ...

    def detokenizer(self) -> Detokenizer:
        """A fresh one; what it gives equals ``decode`` of all ids that were pushed."""
        ...
