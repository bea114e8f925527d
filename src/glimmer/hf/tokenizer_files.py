"""The files that make a tokenizer: where they are found, and what is written of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from glimmer.checkpoints import Checkpoint, ConfigCheckpoint, open_checkpoint
from glimmer.checkpoints.json_file import read_object
from glimmer.checkpoints.packed import is_packed
from glimmer.families import Family
from glimmer.tokenizers import Tokenizer

CONFIG = "tokenizer_config.json"
FAMILY_KEY = "glimmer_family"
# Beside a model's weights, by the names that the lineage gives them.
_FILES = (
    "ice_text.model", "tokenizer.model", "tokenizer.json", "chat_template.jinja",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


def open_for_tokenizer(path: Path) -> Checkpoint:
    """Without the weights, where a folder can be looked at without them."""
    if not path.is_dir() or is_packed(path):
        return open_checkpoint(path)
    if (saved := saved_family(path)) is not None and not (path / "config.json").is_file():
        return ConfigCheckpoint(path, {FAMILY_KEY: saved})
    return ConfigCheckpoint(path) if (path / "config.json").is_file() else open_checkpoint(path)


def saved_family(path: Path) -> str | None:
    file = path / CONFIG
    saved = read_object(file).get(FAMILY_KEY) if file.is_file() else None
    return saved if isinstance(saved, str) else None


def files_of(family: Family, checkpoint: Checkpoint, tokenizer: Tokenizer) -> Mapping[str, bytes]:
    """The files that make the tokenizer, by name."""
    found = {
        name: file.read_bytes()
        for name in (*_FILES, CONFIG)
        if (file := checkpoint.file(name)) is not None
    }
    if found or family.exporter is None:
        return found
    # A GGUF file carries the vocabulary itself.
    template = checkpoint.metadata.get("tokenizer.chat_template")
    made = family.exporter.folder.tokenizer_files(
        tokenizer, template if isinstance(template, str) else family.exporter.chat_template
    )
    return dict(made)
