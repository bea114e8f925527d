"""A Hugging Face folder as a ``Checkpoint``: config.json, weights in one or several files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from glimmer.checkpoints.checkpoint import TensorInfo
from glimmer.checkpoints.content import HEAD_BYTES, describe_content
from glimmer.checkpoints.json_file import read_object
from glimmer.checkpoints.safetensors import SafetensorsFile, is_safetensors
from glimmer.checkpoints.torch_bin import TorchFile, is_torch
from glimmer.errors import MalformedCheckpointError, ModelNotFoundError, UnknownFormatError

Shard = SafetensorsFile | TorchFile

CONFIG = "config.json"
# Ways to name the weights, the ones to prefer first: an index, one file, or numbered files.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_NUMBERED = re.compile(r"^(model|pytorch_model)-(\d{5})-of-(\d{5})\.(safetensors|bin)$", re.ASCII)
_MAX_SHARDS = 10_000


class FolderCheckpoint:
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
        files, listed = ([weights], {}) if weights is not None else find_weights(self._path)
        with ThreadPoolExecutor(min(8, len(files))) as pool:  # headers lie on a disk, far apart
            shards = list(pool.map(open_shard, files))
        self._shard_of: dict[str, Shard] = {}
        for file, shard in zip(files, shards, strict=True):
            for name in shard.tensors:
                if name in self._shard_of:
                    raise MalformedCheckpointError(
                        f"{self._path}: tensor {name!r} is in {file.name} and in another file as "
                        "well; the folder mixes two models: download it again"
                    )
                self._shard_of[name] = shard
        for name, file_name in listed.items():
            if name not in self._shard_of:
                raise MalformedCheckpointError(
                    f"{self._path}: the index says that tensor {name!r} is in {file_name}, but it "
                    "is not. The files are of two models, or one is damaged: download it again."
                )
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
        file = self._path / name
        return file if file.name == name and file.is_file() else None

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        return self._shard_of[name].read(name)

    def release(self, name: str) -> None:
        self._shard_of[name].release(name)

    def release_metadata(self) -> None:
        """Keeps it: a config is small."""

    def close(self) -> None:
        """Ends reading. The mappings themselves go when the last view of them does."""
        self._shard_of = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


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


def find_weights(folder: Path) -> tuple[list[Path], Mapping[str, str]]:
    """The files that hold the weights, all there, and what their index lists, if there is one.

    Raises UnknownFormatError (there are none) or MalformedCheckpointError (one is missing).
    """
    for index in _INDEXES:
        if (folder / index).is_file():
            return _listed(folder / index)
        single = folder / _SINGLE_FILES[_INDEXES.index(index)]
        if single.is_file():
            return [single], {}
    if numbered := _numbered(folder):
        return numbered, {}
    raise UnknownFormatError(
        f"{folder} has a {CONFIG} but no weights: none of {', '.join(_SINGLE_FILES)}, their "
        "numbered parts or their index. Download the model again; with git, `git lfs pull` fetches "
        "the weights."
    )


def _listed(index: Path) -> tuple[list[Path], Mapping[str, str]]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedCheckpointError(
            f"{index} has no weight_map, which tells the file of each tensor: download it again"
        )
    names = set(weight_map.values()) if all(map(_is_text, weight_map.values())) else {None}
    for name in names:
        if name is None or Path(name).name != name or name in ("", ".", ".."):
            raise MalformedCheckpointError(
                f"{index} names the file {name!r:.80}; it must be a file beside it: the index is "
                "damaged, download it again"
            )
    files = [index.parent / name for name in sorted(name for name in names if name)]
    _refuse_missing(files, f"{index.name} lists")
    return files, weight_map


def _numbered(folder: Path) -> list[Path]:
    """Parts without an index: safetensors if there are any."""
    matches = [m for file in sorted(folder.iterdir()) if (m := _NUMBERED.match(file.name))]
    for kind in ("safetensors", "bin"):
        of_kind = [match for match in matches if match[4] == kind]
        if not of_kind:
            continue
        stem, total = of_kind[0][1], int(of_kind[0][3])
        if total > _MAX_SHARDS or any((m[1], int(m[3])) != (stem, total) for m in of_kind):
            raise MalformedCheckpointError(
                f"{folder} mixes the parts of several models: {of_kind[0][0]} and "
                f"{of_kind[-1][0]}. Download the model again into an empty folder."
            )
        files = [folder / f"{stem}-{i:05}-of-{total:05}.{kind}" for i in range(1, total + 1)]
        _refuse_missing(files, "there must be")
        return files
    return []


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
    if not file.exists():
        raise ModelNotFoundError(f"{file}: no such file")
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if is_torch(head):
        return TorchFile(file)
    if is_safetensors(head):
        return SafetensorsFile(file)
    raise MalformedCheckpointError(
        f"{file} holds no weights; it looks like {describe_content(head)}"
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)
