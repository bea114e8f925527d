"""A model's chat and tokenizer, without its weights: all that preparing data takes."""

from __future__ import annotations

import os
from pathlib import Path

from glimmer.catalogue import find_file
from glimmer.checkpoints import Checkpoint, ConfigCheckpoint, open_checkpoint
from glimmer.errors import TokenizerError
from glimmer.families import Chat
from glimmer.model_source import find_family
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
    path, _ = find_file(model)
    if path.is_dir() and (path / "config.json").is_file() and not _has_weights(path):
        return _open(ConfigCheckpoint(path), family)
    with open_checkpoint(path) as checkpoint:
        return _open(checkpoint, family)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _open(checkpoint: Checkpoint, name: str | None) -> tuple[Chat, Tokenizer]:
    family = find_family(checkpoint, name)
    if not family.has_tokenizer(checkpoint):
        raise TokenizerError(
            f"{checkpoint.path} holds no tokenizer, so its training data cannot be made into ids: "
            "put the tokenizer's files of the release into the folder."
        )
    tokenizer = family.tokenizer(checkpoint)
    return family.chat(checkpoint, tokenizer), tokenizer
