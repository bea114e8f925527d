"""An adapter in memory. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from glimmer.errors import MalformedCheckpointError, UnsupportedArchitectureError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What LoRA adds to one linear: ``scale * b @ a``, ``[out, in]`` (arXiv 2106.09685)."""

    a: Floats
    """``[rank, in]``; weights cut from one tensor share the same array."""
    b: Floats
    """``[out, rank]``"""
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def delta(self) -> Floats:
        """What is added to the weight, float32 ``[out, in]``."""
        product: Floats = self.b @ self.a
        return product * np.float32(self.scale)

    @property
    def changes_anything(self) -> bool:
        return self.scale != 0 and bool(self.a.any()) and bool(self.b.any())


@dataclass(frozen=True, eq=False)
class Adapter:
    """Either low-rank products or a prefix."""

    path: Path
    family: str
    base: str | None
    """What it says it was trained on."""
    low_rank: Mapping[str, LowRank] = field(default_factory=lambda: MappingProxyType({}))
    """By canonical name without ".weight": "layers.0.attn_q"."""
    prefix: Floats | None = None
    """Keys and values, unrotated, ``[length, num_layers, 2, kv_width]``."""

    @property
    def kind(self) -> Literal["lora", "prefix"]:
        return "lora" if self.prefix is None else "prefix"

    @property
    def prefix_length(self) -> int:
        return 0 if self.prefix is None else len(self.prefix)

    @property
    def ranks(self) -> list[int]:
        """All that occur, ascending."""
        return sorted({part.rank for part in self.low_rank.values()})

    @property
    def num_parameters(self) -> int:
        """Of what is kept: a projected prefix counts as what is computed from it."""
        return sum(array.size for array in self._arrays)

    @property
    def changes_anything(self) -> bool:
        """Whether an answer can differ from the base's. A prefix of any values is attended to."""
        if self.prefix is not None:
            return len(self.prefix) > 0
        return any(part.changes_anything for part in self.low_rank.values())

    @property
    def not_finite(self) -> str | None:
        """What holds NaN or infinity, by name; None if nothing does."""
        if self.prefix is not None:
            return None if np.isfinite(self.prefix).all() else "the prefix"
        for name, part in self.low_rank.items():
            for half, array in (("A", part.a), ("B", part.b)):
                if not np.isfinite(array).all():
                    return f"{half} of {name}"
            if not np.isfinite(part.scale):
                return f"the scale of {name}"
        return None

    def check_finite(self) -> None:
        """Raise MalformedCheckpointError if anything is NaN or infinite."""
        if (what := self.not_finite) is not None:
            raise MalformedCheckpointError(
                f"{self.path}: {what} holds NaN or infinity. The training has failed or the file "
                "is damaged: take an earlier checkpoint of it."
            )

    @property
    def only_merges(self) -> bool:
        """Whether it changes experts that a router chooses, which take nothing while they run."""
        return any(".experts." in name for name in self.low_rank)

    def check_runs(self) -> None:
        """Raise MalformedCheckpointError if anything is NaN or infinite, and
        UnsupportedArchitectureError if the network can have it merged alone."""
        self.check_finite()
        if self.only_merges:
            name = next(name for name in self.low_rank if ".experts." in name)
            raise UnsupportedArchitectureError(
                f"{self.path} has a part for {name}, but experts that a router chooses take no "
                "adapter while they run. Merge it into the model (glimmer merge), or train one "
                "without them."
            )

    @cached_property
    def digest(self) -> bytes:
        """Of the content, 16 bytes: equal adapters give equal keys and values."""
        made = blake2b(digest_size=16)
        if self.prefix is not None:
            made.update(b"prefix")
            made.update(np.ascontiguousarray(self.prefix).data)
        for name, part in sorted(self.low_rank.items()):
            made.update(f"{name} {part.rank} {part.scale!r} ".encode())
            for array in (part.a, part.b):
                made.update(np.ascontiguousarray(array).data)
        return made.digest()

    @property
    def _arrays(self) -> list[Floats]:
        """Each once."""
        if self.prefix is not None:
            return [self.prefix]
        shared = {id(part.a): part.a for part in self.low_rank.values()}
        return [*shared.values(), *(part.b for part in self.low_rank.values())]
