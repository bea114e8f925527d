"""What is published of a family, and where. Data: nothing here looks at a disk or a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """A checkpoint that a Python distribution carries."""

    distribution: str
    version: str
    path: str
    """Inside the distribution."""
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A folder on a model hub."""

    repo_id: str
    """On Hugging Face, such as "zai-org/chatglm3-6b"."""
    modelscope_id: str
    """On ModelScope, such as "ZhipuAI/chatglm3-6b"."""
    former_ids: tuple[str, ...] = ()
    """Names that Hugging Face knew it by."""


@dataclass(frozen=True, slots=True)
class Licence:
    name: str
    url: str | None
    terms: str
    """In a sentence."""
    is_open: bool
    """Whether it may be used without agreeing to anything first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One published checkpoint."""

    name: str
    title: str
    licence: Licence
    context_length: int
    source: PackagedFile | HubRepository
    config: Mapping[str, Any] | None = None
    """The keys of its config.json that make the network; None where a file tells."""
    notice: str | None = None
    """One line that a user must know before the first answer."""
    sampling: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The values of SamplingParams that the release asks for, where its family's are not right."""


APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", "Free use.", True)
MIT = Licence("MIT", "https://opensource.org/license/mit", "Free use.", True)
