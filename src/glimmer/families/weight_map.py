"""Weight names as data: canonical names of ``Architecture.weight_shapes`` <-> names in a file.

A pattern holds ``{layer}`` where the layer number stands. The same table loads and exports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightMap:
    gguf: Mapping[str, str]
    """Canonical pattern -> pattern in GGUF files."""

    def file_name(self, canonical: str) -> str:
        """The GGUF name of a canonical weight, such as "layers.3.attn_q.weight"."""
        if not canonical.startswith("layers."):
            return self.gguf[canonical]
        _, layer, rest = canonical.split(".", 2)
        return self.gguf["layers.{layer}." + rest].format(layer=layer)
