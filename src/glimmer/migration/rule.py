"""One difference between the two sides, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glimmer.migration.addresses import Endpoint
from glimmer.migration.call import Detector
from glimmer.migration.finding import Severity

Source = Literal["sdk", "reference", "code", "here", "memory"]
"""Where a rule's facts were read: in the source of zai-sdk 0.2.3 and zhipuai 2.1.5.20250825, on the
platform's reference pages, in the official ChatGLM code and in clients of the platform, in this
project, or nowhere: from memory."""

UNLISTED = "The platform's chat reference does not list it: at best it is ignored. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    id: str
    to: Literal["hosted", "local", "both"]
    """The side that a program moves to when this matters."""
    severity: Severity
    """error: it will be refused or mean another thing; warning: it may; note: good to know."""
    detects: str
    why: str
    fix: str
    source: Source
    endpoints: tuple[Endpoint, ...] = ("chat",)
    detect: Detector | None = None
    """Finds it in a call; None where those who read files find it."""
