"""What a family is: all that sets it apart, in one frozen bundle. Knows no family by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from glimmer.architecture import Architecture
from glimmer.chat import AnswerForm, AnswerParser, ChatTemplate, ToolSpec
from glimmer.checkpoints import Checkpoint
from glimmer.errors import InvalidParameterError, UnknownFamilyError
from glimmer.families.exporter import Exporter
from glimmer.families.release import Release
from glimmer.families.weight_map import WeightMap
from glimmer.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Chat:
    """How a model is talked to."""

    template: ChatTemplate
    parser: Callable[[Sequence[ToolSpec]], AnswerParser]
    """A fresh parser for one answer, given the tools that were offered."""
    answers: AnswerForm
    """How the model itself writes an answer: what it is trained to write."""
    tool_grammar: Callable[[Sequence[ToolSpec]], str] | None = None
    """The grammar, in Lark, of an answer that calls one of these tools; None without tools."""
    thought_end: Callable[[bool | None], str | None] = lambda _thinking: None
    """The text at which the thought before an answer ends, given what was asked of ``thinking``;
    None if it does not think."""


@dataclass(frozen=True, slots=True)
class BlankTexts:
    """How a text with blanks is read."""

    tokens: tuple[str, ...]
    """What stands for a blank in a text."""
    encode: Callable[[Tokenizer, str], list[int]]
    """Ids of a text in which they do. What follows a blank is read as the text that goes on."""
    end: str
    """The token that ends a text which ends in no blank, for networks that are released."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFrame:
    """The ids that the official tokenizer adds to a bare text, and the one that fills batches."""

    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    padding: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    name: str
    recognise: Callable[[Checkpoint], str | None]
    """The evidence that a checkpoint is of this family, or None."""
    architecture: Callable[[Checkpoint], Architecture]
    weight_map: WeightMap
    exporter: Exporter | None
    """How it is written in formats of others; None where it is not."""
    has_tokenizer: Callable[[Checkpoint], bool]
    tokenizer: Callable[[Checkpoint], Tokenizer]
    chat: Callable[[Checkpoint, Tokenizer], Chat]
    text_frame: Callable[[Tokenizer], TextFrame]
    stop_token_ids: Callable[[Tokenizer], Sequence[int]]
    """The ids that end an answer."""
    blank_texts: BlankTexts | None = None
    """None where the networks of the family fill no blanks."""
    sampling: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The values of SamplingParams that the official chat uses."""
    releases: tuple[Release, ...]


@cache
def all_families() -> Mapping[str, Family]:
    """Every family by name: each subpackage of ``glimmer.families`` holds one."""
    import glimmer.families as package

    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            family = importlib.import_module(f"{package.__name__}.{module.name}.family").FAMILY
            assert family.name == module.name
            found[family.name] = family
    return MappingProxyType(found)


def recognise(checkpoint: Checkpoint, name: str | None = None) -> Family:
    """The one family whose evidence the checkpoint shows, or the one that is named.

    Raises:
        UnknownFamilyError: none or several recognise it; the message shows the evidence.
        InvalidParameterError: ``name`` is not a family.
    """
    families = all_families()
    if name is not None:
        if name not in families:
            raise InvalidParameterError(
                f"There is no family {name!r}; the families are {', '.join(families)}."
            )
        return families[name]
    evidence = {f.name: why for f in families.values() if (why := f.recognise(checkpoint))}
    if len(evidence) == 1:
        return families[next(iter(evidence))]
    if evidence:
        shown = "; ".join(f"{family}: {why}" for family, why in evidence.items())
        problem = f"Several families recognise {checkpoint.path}: {shown}."
    else:
        problem = f"No family recognises {checkpoint.path}, which says {_identity(checkpoint)}."
    raise UnknownFamilyError(
        f"{problem} If you know which it is, name it (family= or --family): {', '.join(families)}."
    )


def _identity(checkpoint: Checkpoint) -> str:
    """What a file says of itself, for an error."""
    keys = ("general.architecture", "general.name", "tokenizer.ggml.pre")
    said = [f"{key} = {checkpoint.metadata[key]!r}" for key in keys if key in checkpoint.metadata]
    return ", ".join(said) or "nothing of its architecture"
