"""A prompt while it is put together: control tokens, the template's own text, and content."""

from __future__ import annotations

from glimmer.tokenizers import Tokenizer
from glimmer.tokenizers.text import alternatives


class PromptBuilder:
    """Neighbouring text is tokenised as one, as if the whole prompt were.

    Content, which a user or a tool wrote, becomes none of the tokens that a prompt is built of,
    unless ``allow_special``.
    """

    def __init__(self, tokenizer: Tokenizer, allow_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._allow_special = allow_special
        self._tokens = {**tokenizer.special_tokens, **tokenizer.added_tokens}
        self._pattern = alternatives(self._tokens)
        self._ids: list[int] = []
        self._text = ""

    def token(self, token: str) -> None:
        """One token, by its text."""
        self.cut()
        self._ids.append(self._tokens[token])

    def template(self, text: str) -> None:
        """Text of the template itself: tokens in it are tokens."""
        if self._pattern is None:
            self._text += text
            return
        # split with one group: text between matches at even places, matches at odd ones.
        for place, part in enumerate(self._pattern.split(text)):
            if place % 2:
                self.token(part)
            else:
                self._text += part

    def content(self, text: str) -> None:
        self._text += text

    def cut(self) -> None:
        """What follows is tokenised apart from what came before."""
        if self._text:
            self._ids += self._tokenizer.encode(
                self._text, self._allow_special, allow_added=self._allow_special
            )
        self._text = ""

    def ids(self) -> list[int]:
        self.cut()
        return self._ids
