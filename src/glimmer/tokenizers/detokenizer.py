"""Ids to text as they arrive, never half a character. Knows no chat and no family."""

from __future__ import annotations

import codecs

from glimmer.tokenizers.tokenizer import Tokenizer


class Detokenizer:
    """Feeds token bytes through an incremental UTF-8 decoder.

    Bytes of an unfinished character are held back until the character is whole or ``finish`` is
    called; the pieces joined equal ``tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often "", never half a character."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: "" or U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)
