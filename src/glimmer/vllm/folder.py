"""A model as vLLM reads it: transformers' native layout, written once and kept.

What is kept lies in the user's cache (``$XDG_CACHE_HOME/glimmer/vllm``), each model under the hash
of its content, and may be deleted at any time: it is written again when it is needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glimmer.architecture import Architecture
from glimmer.catalogue import find_file
from glimmer.checkpoints import Checkpoint, FolderCheckpoint, PackedCheckpoint, open_checkpoint
from glimmer.checkpoints.atomic import new_file
from glimmer.errors import InvalidParameterError, OutputError
from glimmer.export import convert
from glimmer.families import Family
from glimmer.families.exporter import FolderFormat
from glimmer.model_source import find_architecture, find_family
from glimmer.packed_source import PackedSource

_LOG = logging.getLogger("glimmer.server")
_REPORT_S = 15.0
_CONVERSION = 1
"""Counts up when a conversion comes to write something else: what is kept is written again."""


def check_runs(family: Family, architecture: Architecture) -> FolderFormat:
    """The layout in which vLLM runs a network.

    Raises:
        InvalidParameterError: it cannot; the message says why.
    """
    reasons = []
    if architecture.mask != "causal":
        reasons.append(
            "each token of its context sees those behind it (a prefix mask), and vLLM's attention "
            "is causal"
        )
    if architecture.rope.positions != "1d":
        reasons.append("its tokens have two positions each, and vLLM counts one")
    if architecture.prefix_length:
        reasons.append("it has a trained prefix of keys and values (P-Tuning), which vLLM lacks")
    exporter = family.exporter
    if not reasons and exporter is not None and exporter.folder.model_class is not None:
        return exporter.folder
    raise InvalidParameterError(
        f"vLLM does not run this model ({family.name}): "
        + ("; ".join(reasons) or "transformers has no class of its own for it")
        + ". Serve it with the engine native."
    )


def check_model(source: str, family: str | None) -> None:
    """Whether vLLM runs a model, before anything is written or started.

    Raises:
        InvalidParameterError: it does not; and whatever opening the model raises.
    """
    path, _ = find_file(source)
    with open_checkpoint(path) as checkpoint:
        _form_of(checkpoint, family)


def model_folder(
    source: str, family: str | None = None, environ: Mapping[str, str] = os.environ
) -> Path:
    """The model's own folder if vLLM reads that, else one that was converted now or before.

    Raises:
        InvalidParameterError: vLLM does not run the model; nothing is written then.
        OutputError: the cache cannot be written; and whatever ``glimmer.export.convert`` raises.
    """
    path, _ = find_file(source)
    with open_checkpoint(path) as checkpoint:
        name, form = _form_of(checkpoint, family)
        if _is_native(checkpoint, form):
            return checkpoint.path
        files = _files_of(checkpoint)
    cache = cache_dir(environ)
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{path.stem[:40]}-{_name(name, files, cache)}"
    if _is_whole(target):
        return target
    _LOG.info("converting %s to the layout that vLLM reads, once: %s", path, target)
    try:
        # What another process writes meanwhile is as good, and may be read already.
        is_damaged = target.exists()
        convert(path, target, "hf", family=family, overwrite=is_damaged, progress=_Report())
    except InvalidParameterError:
        if not _is_whole(target):  # else the other process was faster
            raise
    return target


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    home = environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return base / "glimmer" / "vllm"


def _form_of(checkpoint: Checkpoint, name: str | None) -> tuple[str, FolderFormat]:
    """The family's name, and the layout in which vLLM runs it."""
    family = find_family(checkpoint, name)
    form = check_runs(family, find_architecture(checkpoint, family))
    if isinstance(checkpoint, PackedCheckpoint):
        raise PackedSource.refusal(checkpoint)
    if not family.has_tokenizer(checkpoint):
        raise InvalidParameterError(
            f"{checkpoint.path} holds no tokenizer, and vLLM does not start without one. Take a "
            "folder or file that was converted with its tokenizer."
        )
    return family.name, form


def _is_native(checkpoint: Checkpoint, form: FolderFormat) -> bool:
    return (
        isinstance(checkpoint, FolderCheckpoint)
        and checkpoint.format == "safetensors"
        and checkpoint.metadata.get("architectures") == [form.model_class]
        and checkpoint.file("tokenizer.json") is not None
    )


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _files_of(checkpoint: Checkpoint) -> list[Path]:
    path = checkpoint.path
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file())


def _name(family: str, files: list[Path], cache: Path) -> str:
    """A hash of what a conversion comes of: the family, all bytes of the files, the conversion
    itself. A file is read once for each size and time of change."""
    memory = cache / "hashes.json"
    known = _read_known(memory)
    total = hashlib.sha256(f"{_CONVERSION}\0{family}\n".encode())
    for file in files:
        status = file.stat()
        identity = [status.st_size, status.st_mtime_ns]
        key = str(file.resolve())
        if known.get(key, [])[:2] != identity or not isinstance(known[key][2], str):
            with file.open("rb") as stream:
                known[key] = [*identity, hashlib.file_digest(stream, "sha256").hexdigest()]
        total.update(f"{file.name}\0{known[key][2]}\n".encode())
    try:
        with new_file(memory, overwrite=True) as stream:
            stream.write(json.dumps(known).encode())
    except OutputError as error:
        _LOG.warning("%s The hash is computed again next time.", error)
    return total.hexdigest()[:24]


def _read_known(memory: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # never written, or damaged: what it knew is found out again
    if not isinstance(known, dict):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, list) and len(v) == 3}


class _Report:
    """Tells the log how far a conversion is."""

    def __init__(self) -> None:
        self._done = 0
        self._next = time.monotonic() + _REPORT_S

    def __call__(self, done: int, total: int) -> None:
        self._done += done
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _REPORT_S
            _LOG.info("converted %.1f of %.1f GiB", self._done / 2**30, total / 2**30)
