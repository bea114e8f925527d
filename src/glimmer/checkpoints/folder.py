"""A Hugging Face folder as a ``Checkpoint``: config.json, weights in one or several files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from glimmer.checkpoints.checkpoint import TensorInfo
from glimmer.checkpoints.content import HEAD_BYTES, describe_content
from glimmer.checkpoints.json_file import read_object
from glimmer.checkpoints.mapped_file import MappedFile
from glimmer.checkpoints.safetensors import SafetensorsFile, is_safetensors
from glimmer.checkpoints.torch_bin import TorchFile, is_torch
from glimmer.closing import ClosesAtExit
from glimmer.errors import MalformedCheckpointError, UnknownFormatError

Shard = SafetensorsFile | TorchFile

CONFIG = "config.json"
# Of each kind of weights, the one to prefer first, the name of a single file. Beside it may lie an
# index, or in its place numbered parts.
_SINGLE_FILES = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
_NUMBERED = re.compile(r"(model|pytorch_model)-(\d{5})-of-(\d{5})\.(safetensors|bin)", re.ASCII)
_MAX_SHARDS = 10_000
_MAX_NAME_BYTES = 255


class FolderCheckpoint(ClosesAtExit):
    """An open folder.

    ``metadata`` is its config.json; ``format`` is that of the weights, "safetensors" or "torch".
    With both, safetensors are taken.

    Raises ModelNotFoundError, UnknownFormatError (no config, no weights), MalformedCheckpointError,
    UnsupportedTensorTypeError or UnsafeCheckpointError, each naming the file.
    """

    def __init__(self, path: str | os.PathLike[str], *, weights: Path | None = None) -> None:
        """``weights`` names the one file to take, whatever else lies in the folder."""
        self._path = Path(path)
        self._metadata: Mapping[str, Any] = MappingProxyType(read_config(self._path, weights))
        found = WeightFiles([weights]) if weights is not None else find_weights(self._path)
        with ThreadPoolExecutor(min(8, len(found.files))) as pool:  # headers lie far apart
            shards = list(pool.map(open_shard, found.files))
        self._shard_of: dict[str, Shard] | None = _by_name(self._path, shards)
        if found.index is not None:
            _compare(found.index, found.file_of, self._shard_of)
        self.format = shards[0].format
        self._tensors = MappingProxyType(
            {name: shard.tensors[name] for name, shard in self._shard_of.items()}
        )

    @property
    def path(self) -> Path:
        return self._path

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def file(self, name: str) -> Path | None:
        """Never outside the folder: "../name" is no file beside the weights."""
        file = self._path / name
        return file if _is_file_name(name) and file.is_file() else None

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        assert self._shard_of is not None, "the checkpoint is closed"
        return self._shard_of[name].read(name)

    def release(self, name: str) -> None:
        assert self._shard_of is not None, "the checkpoint is closed"
        self._shard_of[name].release(name)

    def release_metadata(self) -> None:
        """Keeps it: a config is small."""

    def close(self) -> None:
        """Ends reading. The mappings themselves go when the last view of them does."""
        self._shard_of = None


class ConfigCheckpoint(FolderCheckpoint):
    """A folder of which only config.json is looked at: what is known before any weight is there."""

    def __init__(
        self, path: str | os.PathLike[str], config: Mapping[str, Any] | None = None
    ) -> None:
        """``config`` stands in for the file."""
        self._path = Path(path)
        self._metadata = MappingProxyType(dict(config) if config else read_config(self._path))
        self._shard_of = {}
        self._tensors = MappingProxyType({})
        self.format = "config"


def read_config(folder: Path, weights: Path | None = None) -> dict[str, Any]:
    """config.json of a folder, or beside a file of weights."""
    file = folder / CONFIG
    if not file.is_file():
        raise UnknownFormatError(
            f"{weights or folder} has no {CONFIG}{' beside it' if weights else ''}, which tells "
            "what network its weights are. Take the whole folder of the model, or a GGUF file, "
            "which holds all in one."
        )
    return read_object(file)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """``files`` hold the weights and are all there."""

    files: Sequence[Path]
    index: Path | None = None
    file_of: Mapping[str, str] = field(default_factory=dict)
    """What the index says: each tensor's file."""


def find_weights(folder: Path) -> WeightFiles:
    """Raises UnknownFormatError (there are none) or MalformedCheckpointError (one is missing)."""
    for kind, single in _SINGLE_FILES.items():
        index = folder / f"{single}.index.json"
        if index.is_file():
            return _listed(index)
        if (folder / single).is_file():
            return WeightFiles([folder / single])
        if numbered := _numbered(folder, kind):
            return WeightFiles(numbered)
    raise UnknownFormatError(
        f"{folder} has a {CONFIG} but no weights: none of {', '.join(_SINGLE_FILES.values())}, "
        "their numbered parts or their index. Download the model again; with git, `git lfs pull` "
        "fetches the weights."
    )


def _listed(index: Path) -> WeightFiles:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedCheckpointError(
            f"{index} has no weight_map, which tells the file of each tensor: download it again"
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_file_name(name):
            raise MalformedCheckpointError(
                f"{index} gives {name!r:.80} as the file of {tensor!r:.80}; it must be a file "
                "beside the index, which is damaged: download it again"
            )
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    _refuse_missing(files, f"{index.name} lists")
    return WeightFiles(files, index, weight_map)


def _numbered(folder: Path, kind: str) -> list[Path]:
    """Parts without an index."""
    names = sorted(file.name for file in folder.iterdir())
    parts = [match for name in names if (match := _NUMBERED.fullmatch(name)) and match[4] == kind]
    if not parts:
        return []
    stem, total = parts[0][1], int(parts[0][3])
    for part in parts:
        if (part[1], int(part[3])) != (stem, total):
            raise MalformedCheckpointError(
                f"{folder} mixes the parts of several models: {parts[0][0]} and {part[0]}. "
                "Download the model again into an empty folder."
            )
        if not 1 <= int(part[2]) <= total <= _MAX_SHARDS:
            raise MalformedCheckpointError(
                f"{folder} has the part {part[0]}, but parts are numbered from 1 to their number, "
                f"at most {_MAX_SHARDS}. Download the model again into an empty folder."
            )
    files = [folder / f"{stem}-{i:05}-of-{total:05}.{kind}" for i in range(1, total + 1)]
    _refuse_missing(files, "there must be")
    return files


def _refuse_missing(files: list[Path], why: str) -> None:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if missing[3:] else "")
        raise MalformedCheckpointError(
            f"{files[0].parent}: {why} {len(files)} files of weights, but {len(missing)} are not "
            f"there: {shown}. The download is incomplete: start it again, it goes on where it "
            "ended."
        )


def open_shard(file: Path) -> Shard:
    """One file of weights, its format decided by content."""
    head = MappedFile(file).data[:HEAD_BYTES]
    if is_torch(head):
        return TorchFile(file)
    if is_safetensors(head):
        return SafetensorsFile(file)
    raise MalformedCheckpointError(
        f"{file} holds no weights; it looks like {describe_content(head)}"
    )


def _by_name(folder: Path, shards: Sequence[Shard]) -> dict[str, Shard]:
    shard_of: dict[str, Shard] = {}
    for shard in shards:
        for name in shard.tensors:
            if name in shard_of:
                raise MalformedCheckpointError(
                    f"{folder}: tensor {name!r:.80} is in {shard_of[name].path.name} and in "
                    f"{shard.path.name} as well; the folder mixes two models: download it again"
                )
            shard_of[name] = shard
    return shard_of


def _compare(index: Path, file_of: Mapping[str, str], shard_of: Mapping[str, Shard]) -> None:
    """Refuse what the index contradicts.

    It may list more than the files hold: the converter to safetensors drops tensors that share
    their numbers with another one, and leaves them in the index. A weight that is needed and in no
    file is refused where the network is known.
    """
    for name, shard in shard_of.items():
        due = file_of.get(name)
        if due != shard.path.name:
            said = "does not list it" if due is None else f"says {due}"
            raise MalformedCheckpointError(
                f"{index.parent}: tensor {name!r:.80} is in {shard.path.name}, but {index.name} "
                f"{said}; the index and the files are of different models: download both again"
            )


def _is_file_name(name: str) -> bool:
    """Whether it names a file in the folder that it is put to, and may be shown on a terminal."""
    plain = name not in ("", ".", "..") and Path(name).name == name and name.isprintable()
    return plain and len(name.encode()) <= _MAX_NAME_BYTES
