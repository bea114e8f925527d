"""Model files: names, shapes, types and lazily mapped bytes. Knows no network and no family."""

from glimmer.checkpoints.checkpoint import Checkpoint, TensorInfo
from glimmer.checkpoints.folder import ConfigCheckpoint, FolderCheckpoint
from glimmer.checkpoints.formats import open_checkpoint
from glimmer.checkpoints.gguf import GGUFCheckpoint
from glimmer.checkpoints.packed import PackedCheckpoint

__all__ = [
    "Checkpoint",
    "ConfigCheckpoint",
    "FolderCheckpoint",
    "GGUFCheckpoint",
    "PackedCheckpoint",
    "TensorInfo",
    "open_checkpoint",
]
