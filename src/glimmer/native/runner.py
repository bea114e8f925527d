"""What runs a network for the engine: the native core, or another behind the same interface."""

from __future__ import annotations

from typing import Any, Protocol

from glimmer.architecture import Architecture
from glimmer.native.model import KVDType, StepInput, StepResult


class Cache(Protocol):
    """``num_blocks`` blocks of ``BLOCK_SIZE`` tokens of all layers; the engine knows whose."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...

    def copy_block(self, source: int, target: int) -> None:
        """Make block ``target`` equal to ``source``, in all layers."""
        ...


class Runner(Protocol):
    """One network with its weights."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def weights_bytes(self) -> int: ...

    def available_memory(self) -> int | None:
        """Bytes that a cache may still take, where the network runs; None if nobody knows."""
        ...

    def new_cache(self, num_blocks: int, dtype: KVDType) -> Cache: ...

    def step(self, cache: Any, step: StepInput) -> StepResult:
        """Run one batch on a cache of ``new_cache``; raises as ``NativeModel.step``."""
        ...
