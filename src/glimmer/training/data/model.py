"""A model's chat and tokenizer, without its weights: all that preparing data takes."""

from __future__ import annotations

import os

from glimmer.families import Chat
from glimmer.loader import load_text
from glimmer.tokenizers import Tokenizer


def open_chat(
    model: str | os.PathLike[str], *, family: str | None = None
) -> tuple[Chat, Tokenizer]:
    """The chat and the tokenizer of a release, a GGUF file or a folder, also one without weights.

    Raises:
        ModelNotFoundError: no such path or release.
        CheckpointError: the files are at fault.
        TokenizerError: there is no tokenizer, or a broken one.
    """
    text = load_text(model, family=family)
    return text.chat, text.tokenizer
