"""Ids to text as they arrive, never half a character. Knows no chat and no family."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from typing import Protocol


class Detokenizer(Protocol):
    """Text of one sequence of tokens, piece by piece; the pieces joined are its decoded text."""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often "", never half a character."""
        ...

    def finish(self) -> str:
        """What is left; U+FFFD for a character that never became whole."""
        ...


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\N{REPLACEMENT CHARACTER}" * (error.end - error.start), error.end


EACH_BYTE = "glimmer.replace_each_byte"
"""A way to decode broken UTF-8: U+FFFD for each byte, and not for each broken character."""
codecs.register_error(EACH_BYTE, _replace_each_byte)


class ByteDetokenizer:
    """Feeds the bytes of tokens through an incremental UTF-8 decoder."""

    def __init__(self, token_bytes: Callable[[int], bytes], errors: str = "replace") -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def decode_all(detokenizer: Detokenizer, ids: Iterable[int]) -> str:
    """The text of a whole sequence."""
    return "".join([*map(detokenizer.push, ids), detokenizer.finish()])
