"""Typed access to a checkpoint's metadata: the value, or an error that names the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from glimmer.errors import GlimmerError, MalformedCheckpointError

T = TypeVar("T")


def require(
    metadata: Mapping[str, Any],
    key: str,
    kind: type[T],
    path: Path,
    error: type[GlimmerError] = MalformedCheckpointError,
) -> T:
    """The value of ``key``, which must be exactly a ``kind``: int, float, bool, str or list.

    An integer is not taken for a float, nor a boolean for an integer. Raises ``error``, naming
    file, key, what was found and what is expected.
    """
    if key not in metadata:
        raise error(f"{path}: the metadata has no key {key!r}; expected {kind.__name__}")
    value = metadata[key]
    if type(value) is not kind:
        raise error(f"{path}: metadata key {key!r} holds {_show(value)}; expected {kind.__name__}")
    return value


def get(
    metadata: Mapping[str, Any],
    key: str,
    kind: type[T],
    default: T,
    path: Path,
    error: type[GlimmerError] = MalformedCheckpointError,
) -> T:
    """Like ``require``, but ``default`` where the key is absent."""
    return require(metadata, key, kind, path, error) if key in metadata else default


def require_list(
    metadata: Mapping[str, Any],
    key: str,
    kind: type[T],
    path: Path,
    error: type[GlimmerError] = MalformedCheckpointError,
) -> list[T]:
    """Like ``require``, for a list whose items are all exactly a ``kind``."""
    items: list[Any] = require(metadata, key, list, path, error)
    for index, item in enumerate(items):
        if type(item) is not kind:
            raise error(
                f"{path}: item {index} of metadata key {key!r} is {_show(item)}; "
                f"expected {kind.__name__}"
            )
    return items


def _show(value: object) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
