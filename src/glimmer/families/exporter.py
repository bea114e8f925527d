"""What a family must know to be written in a format of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from glimmer.architecture import Architecture
from glimmer.checkpoints.gguf_writer import GGUFValue


class FolderConfig(Protocol):
    def __call__(
        self,
        architecture: Architecture,
        /,
        *,
        dtype: str,
        eos_token_ids: Sequence[int],
        pad_token_id: int | None,
    ) -> dict[str, Any]:
        """config.json of a network whose floats are stored as ``dtype``.

        Raises:
            InvalidParameterError: the layout cannot express the network.
        """
        ...


@dataclass(frozen=True, slots=True)
class FolderFormat:
    layout: str
    """A layout of the family's weight map."""
    config: FolderConfig
    tokenizer_files: Callable[[Any, str | None], Mapping[str, bytes]]
    """Tokenizer and chat template (Jinja text, if there is one) -> files by name."""
    model_class: str | None = None
    """The class of transformers' that runs it, and which vLLM knows by that name; None where no
    other program runs it without remote code."""


@dataclass(frozen=True, slots=True)
class Exporter:
    gguf_architecture: str
    gguf_keys: Callable[[Architecture], Mapping[str, GGUFValue]]
    gguf_tokenizer: Callable[[Any, int], Mapping[str, GGUFValue]]
    """Tokenizer and the number of rows of the embedding -> GGUF keys."""
    folder: FolderFormat
    """What other programs run without remote code; where there is none, the official form."""
    chat_template: str | None = None
    """In Jinja, for models that bring none of their own."""
    integers: FolderFormat | None = None
    """The official form with integers and a scale per row; None where the family has none."""
    unquantized: frozenset[str] = field(
        default_factory=lambda: frozenset({"embedding.weight", "head.weight"})
    )
    """Matrices that ``integers`` leaves as they are."""


NO_FILES: Mapping[str, bytes] = MappingProxyType({})
