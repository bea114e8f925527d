"""What runs a network for the engine: the native core, or another behind the same interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from glimmer.architecture import Architecture
from glimmer.native.model import Float32Array, KVDType, StepInput, StepResult


class Cache(Protocol):
    """``num_blocks`` blocks of ``BLOCK_SIZE`` tokens of all layers; the engine knows whose."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...

    def copy_block(self, source: int, target: int) -> None:
        """Make block ``target`` equal to ``source``, in all layers."""
        ...


class AdapterPart(Protocol):
    """Low-rank products or a prefix, as the runner that made it uses them."""

    @property
    def size_bytes(self) -> int: ...


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

    def new_lora(
        self, parts: Mapping[str, tuple[Float32Array, Float32Array, float]]
    ) -> AdapterPart:
        """For ``StepInput.loras``; ``parts`` and what it raises as of ``native.Lora``."""
        ...

    def new_prefix(self, values: Float32Array, dtype: KVDType) -> AdapterPart:
        """For ``StepInput.prefixes`` on a cache of ``dtype``; as ``native.KVPrefix``."""
        ...

    def step(self, cache: Any, step: StepInput) -> StepResult:
        """Run one batch on a cache of ``new_cache``; raises as ``NativeModel.step``."""
        ...
