"""An adapter as the engine uses it. Knows no file and no name."""

from __future__ import annotations

from dataclasses import dataclass

from glimmer.native.runner import AdapterPart


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """What makes the answers of some requests another model's. Requests hold it: it may be taken
    from wherever it was listed while they run."""

    digest: bytes
    """Of its content: keys and values computed with it are those of this digest alone."""
    lora: AdapterPart | None = None
    prefix: AdapterPart | None = None

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in (self.lora, self.prefix) if part is not None)
