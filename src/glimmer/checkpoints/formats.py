"""Which checkpoint format lies at a path? Decided by content, never by a file's name."""

from __future__ import annotations

import os
from pathlib import Path

from glimmer.checkpoints.checkpoint import Checkpoint
from glimmer.checkpoints.gguf import GGUFCheckpoint
from glimmer.errors import UnknownFormatError


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens the model at ``path``; so far a single GGUF file.

    Raises ModelNotFoundError if nothing can be opened there, UnknownFormatError for a folder or a
    file of another format, and the errors of ``GGUFCheckpoint`` for a damaged file.
    """
    path = Path(path)
    if path.is_dir():
        raise UnknownFormatError(
            f"{path} is a folder; this version reads single GGUF files only. {_advice(path)}"
        )
    return GGUFCheckpoint(path)


def _advice(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob("*.gguf"))
    if names:
        shown = ", ".join(names[:3]) + (" ..." if names[3:] else "")
        return f"It holds {shown}: give the path of such a file"
    return "It holds no .gguf file: convert the model to GGUF and give the file's path"
