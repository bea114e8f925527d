"""A chat and a tokenizer of every family: tiny ones, made here, and the published ones."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest

from glimmer.checkpoints import ConfigCheckpoint
from glimmer.families import Chat, all_families
from glimmer.tokenizers import Tokenizer
from glimmer.training.data import open_chat
from tests.support import golden, tiny_tokenizers
from tests.support.demo_model import demo_gguf
from tests.support.tiny_gguf import tiny_gguf

NAMES = (
    "chatglm", "chatglm2", "chatglm3", "glm4", "glm4_0414", "glm4_0414 (Z1)", "glm45", "smollm",
)  # fmt: skip
_REAL = {
    "chatglm": "chatglm-6b",
    "chatglm2": "chatglm2-6b",
    "chatglm3": "chatglm3-6b",
    "glm4": "glm-4-9b-chat",
    "glm4_0414": "glm-4-0414-RECONSTRUCTED",
    "glm4_0414 (Z1)": "glm-4-0414-RECONSTRUCTED",
    "glm45": "glm-4.5-RECONSTRUCTED",
}


@cache
def tiny_chat(name: str) -> tuple[Chat, Tokenizer]:
    family = name.split()[0]
    with tempfile.TemporaryDirectory() as folder:
        if family == "smollm":
            return open_chat(tiny_gguf(Path(folder, "tiny.gguf")))
        for file, data in tiny_tokenizers.files(family, "official").items():
            Path(folder, file).write_bytes(data)
        return _open(ConfigCheckpoint(folder, _config(name)), name)


@cache
def real_chat(name: str) -> tuple[Chat, Tokenizer]:
    """Skips the test where the published tokenizer is not at hand."""
    if name == "smollm":
        return open_chat(demo_gguf())
    folder = golden.FOLDER.parent / "tokenizers" / _REAL[name]
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    return _open(ConfigCheckpoint(folder, _config(name)), name)


def _config(name: str) -> dict[str, str]:
    # A chat template that opens a thought is what tells GLM-Z1.
    return {"tokenizer.chat_template": "<think>" if "Z1" in name else "none"}


def _open(checkpoint: ConfigCheckpoint, name: str) -> tuple[Chat, Tokenizer]:
    family = all_families()[name.split()[0]]
    tokenizer = family.tokenizer(checkpoint)
    return family.chat(checkpoint, tokenizer), tokenizer
