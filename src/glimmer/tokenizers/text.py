"""Checks and cuts of text that tokenizers share."""

from __future__ import annotations

import re
from collections.abc import Iterable

from glimmer.errors import InvalidParameterError, TokenizerError


def check_unicode(text: str) -> None:
    """Raise InvalidParameterError if ``text`` holds half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidParameterError(
            f"the text has {text[error.start]!r} at position {error.start}, half of a surrogate "
            "pair, which is not a character; remove it or decode the text correctly"
        ) from error


def alternatives(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of ``texts``, the longest where several begin; None if there is none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None


def refuse_pointer(data: bytes, what: str) -> None:
    """Raise TokenizerError if the file's bytes are what git keeps in place of a large file."""
    if data.startswith(b"version https://git-lfs"):
        raise TokenizerError(
            f"{what} is a Git LFS pointer, a few lines of text in place of the tokenizer; fetch "
            "the file itself with `git lfs pull`"
        )


def no_such_token(token_id: int, vocab_size: int) -> InvalidParameterError:
    return InvalidParameterError(f"there is no token {token_id}; ids are 0 to {vocab_size - 1}")
