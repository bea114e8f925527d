"""Typed access to a network's numbers: a model's config.json, or the keys of a GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np

from glimmer.checkpoints import Checkpoint
from glimmer.errors import MalformedCheckpointError, UnsupportedArchitectureError

_MISSING: Any = object()


class Config:
    """The keys of one checkpoint, each under ``prefix``.

    Every method takes the default for a key that is absent (or null, which config.json uses for
    "not set") and raises MalformedCheckpointError, naming the key, where there is none or the value
    is of another type.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str = "") -> None:
        self._checkpoint = checkpoint
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self._checkpoint.metadata.get(self._prefix + key) is not None

    def count(self, key: str, default: int = _MISSING) -> int:
        value: int = self._get(key, default, "a whole number", int)
        return value

    def number(self, key: str, default: float = _MISSING) -> float:
        value = self._get(key, default, "a number", int, float)
        # GGUF keeps float32: 1e-05 and not 9.999999747378752e-06 is what was meant.
        return float(str(np.float32(value))) if self._checkpoint.format == "gguf" else float(value)

    def flag(self, key: str, default: bool = _MISSING) -> bool:
        value: bool = self._get(key, default, "true or false", bool)
        return value

    def text(self, key: str, default: str = _MISSING) -> str:
        value: str = self._get(key, default, "text", str)
        return value

    def table(self, key: str) -> dict[str, Any]:
        """An object; empty where it is absent."""
        value: dict[str, Any] = self._get(key, {}, "an object", dict)
        return value

    def require(self, key: str, allowed: object, default: object, meaning: str) -> None:
        """Raise UnsupportedArchitectureError unless ``key`` has the one value that is run."""
        value = self._get(key, default, "", object)
        if value != allowed:
            raise UnsupportedArchitectureError(
                f"{self._checkpoint.path}: {self._prefix}{key} is {value!r}, {meaning}, which no "
                f"published model of this kind has and this version does not run; it runs "
                f"{allowed!r}."
            )

    def _get(self, key: str, default: Any, expected: str, *kinds: type) -> Any:
        name = self._prefix + key
        value = self._checkpoint.metadata.get(name)
        if value is None:
            if default is _MISSING:
                raise MalformedCheckpointError(
                    f"{self._checkpoint.path}: the config has no {name!r}; it must be {expected}."
                )
            return default
        # bool is an int to Python, and no number to a config.
        wrong_bool = isinstance(value, bool) and bool not in kinds and object not in kinds
        if wrong_bool or not isinstance(value, kinds):
            raise MalformedCheckpointError(
                f"{self._checkpoint.path}: {name!r} in the config is {value!r:.60}, but it must be "
                f"{expected}."
            )
        return value
