"""The adapters that requests may name, in the form that the engine runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping

from glimmer.adapters import Adapter, read_adapter
from glimmer.catalogue import find_file
from glimmer.checkpoints import open_checkpoint
from glimmer.engine import AdapterWeights
from glimmer.errors import AdapterNotFoundError, InvalidParameterError
from glimmer.loader import LoadedModel
from glimmer.native.model import KVDType
from glimmer.packed_source import open_source
from glimmer.text_model import TextModel


class AdapterPool:
    """Of one model and one type of KV cache. Any thread may call; nothing waits for a step."""

    def __init__(self, model: TextModel, kv_dtype: KVDType = "float16") -> None:
        self._model = model
        self._kv_dtype = kv_dtype
        self._weights: dict[str, AdapterWeights] = {}
        self._adding = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._weights)

    @property
    def size_bytes(self) -> int:
        return sum(weights.size_bytes for weights in list(self._weights.values()))

    def load(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Read an adapter, which requests may name from now on.

        Raises:
            InvalidParameterError: the name is taken or empty, or the network runs elsewhere.
            CheckpointError: the folder is at fault, or holds NaN; or it does not fit the model, or
                for routed experts.
            OutOfMemoryError: a prefix does not fit into memory.
        """
        self._check_free(name)
        if not isinstance(self._model, LoadedModel):
            raise InvalidParameterError(
                "Adapters are for networks that run in this process, but this one runs elsewhere. "
                "Merge the adapter into the model (glimmer merge), or serve it with the engine "
                "native or torch."
            )
        weights = self._make(self._model, self._model.read_adapter(folder))
        with self._adding:
            self._check_free(name)
            self._weights[name] = weights

    def unload(self, name: str) -> None:
        """Forget an adapter. Requests that have begun with it end with it.

        Raises:
            AdapterNotFoundError
        """
        with self._adding:
            if self._weights.pop(name, None) is None:
                raise self._not_found(name)

    def find(self, name: str | None) -> AdapterWeights | None:
        """None for none. Raises AdapterNotFoundError."""
        if name is None:
            return None
        weights = self._weights.get(name)
        if weights is None:
            raise self._not_found(name)
        return weights

    def _make(self, model: LoadedModel, adapter: Adapter) -> AdapterWeights:
        adapter.check_runs()
        runner = model.runner
        parts = {name: (p.a, p.b, p.scale) for name, p in adapter.low_rank.items()}
        return AdapterWeights(
            adapter.digest,
            runner.new_lora(parts) if parts else None,
            None if adapter.prefix is None else runner.new_prefix(adapter.prefix, self._kv_dtype),
        )

    def _check_free(self, name: str) -> None:
        if not name:
            raise InvalidParameterError("An adapter needs a name that is not empty.")
        if name in self._weights:
            raise InvalidParameterError(
                f"There is an adapter called {name!r:.100} already. Take another name, or unload "
                "that one first."
            )

    def _not_found(self, name: str) -> AdapterNotFoundError:
        loaded = ", ".join(self._weights)
        return AdapterNotFoundError(
            f"There is no adapter called {name!r:.100} here; there "
            + (f"are {loaded}." if loaded else "is none: load it first.")
        )


def read_adapters(
    model: str | os.PathLike[str],
    folders: Iterable[str | os.PathLike[str]],
    *,
    family: str | None = None,
) -> list[Adapter]:
    """Adapters for a model of which no weight is read.

    Raises: as ``read_adapter``, ``find_file`` and ``open_source``.
    """
    path, _ = find_file(model)
    with open_checkpoint(path) as checkpoint:
        source = open_source(checkpoint, family)
        return [read_adapter(folder, source.family, source.architecture) for folder in folders]


def check_adapters(
    model: str | os.PathLike[str],
    folders: Iterable[str | os.PathLike[str]],
    *,
    family: str | None = None,
) -> None:
    """Whether a model can run them, before the time of loading it is spent.

    Raises: as ``read_adapters`` and ``Adapter.check_runs``.
    """
    if folders := list(folders):
        for adapter in read_adapters(model, folders, family=family):
            adapter.check_runs()


def load_all(pool: AdapterPool, adapters: Mapping[str, str | os.PathLike[str]] | None) -> None:
    """Raises as ``AdapterPool.load``."""
    for name, folder in (adapters or {}).items():
        pool.load(name, folder)
