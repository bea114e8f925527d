"""Which checkpoint format lies at a path? Decided by content, never by a file's name."""

from __future__ import annotations

import os
from pathlib import Path

from glimmer.checkpoints.checkpoint import Checkpoint
from glimmer.checkpoints.content import HEAD_BYTES
from glimmer.checkpoints.folder import CONFIG, FolderCheckpoint
from glimmer.checkpoints.gguf import GGUFCheckpoint
from glimmer.checkpoints.mapped_file import MappedFile
from glimmer.checkpoints.packed import WEIGHTS_FILE, PackedCheckpoint, is_packed
from glimmer.checkpoints.safetensors import is_safetensors
from glimmer.checkpoints.torch_bin import is_torch
from glimmer.errors import ModelNotFoundError, UnknownFormatError


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens the model at ``path``: a packed folder, a folder with config.json, a GGUF file, or a
    file of weights beside its config.json. A folder that holds nothing but one GGUF file stands for
    that file.

    Raises ModelNotFoundError if nothing can be opened there, UnknownFormatError for a folder or a
    file of another format, and the errors of ``GGUFCheckpoint``, ``FolderCheckpoint`` and
    ``PackedCheckpoint``.
    """
    path = Path(path)
    try:
        return _open(path)
    except OSError as error:  # no right to look into a folder, a name that is too long ...
        raise ModelNotFoundError(f"{path} cannot be opened: {error}") from error


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        if is_packed(path):
            return PackedCheckpoint(path)
        if not (path / CONFIG).is_file() and len(files := sorted(path.glob("*.gguf"))) > 0:
            if len(files) == 1:
                return GGUFCheckpoint(files[0])
            shown = ", ".join(file.name for file in files[:3]) + (" ..." if files[3:] else "")
            raise UnknownFormatError(
                f"{path} holds several models: {shown}. Give the path of one of them."
            )
        return FolderCheckpoint(path)
    if path.name == WEIGHTS_FILE:
        return PackedCheckpoint(path.parent)
    head = MappedFile(path).data[:HEAD_BYTES]
    if is_torch(head) or is_safetensors(head):
        return FolderCheckpoint(path.parent, weights=path)
    return GGUFCheckpoint(path)
