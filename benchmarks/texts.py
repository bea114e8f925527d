"""Texts to measure perplexity on: those that every Python has; problems, where they lie beside."""

from __future__ import annotations

import inspect
import json
import pydoc_data.topics
import statistics
import typing
from collections.abc import Mapping
from pathlib import Path

_PROBLEMS = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k" / "test.jsonl"
NUM_CHARACTERS = 14_000
"""Of each text: some four thousand tokens."""


def texts() -> Mapping[str, str]:
    """By name. They differ a little between versions of Python, their perplexities with them."""
    found = {
        "the language reference": "\n\n".join(
            text for _, text in sorted(pydoc_data.topics.topics.items())
        ),
        "library code": "\n\n".join(inspect.getsource(module) for module in (typing, statistics)),
    }
    if _PROBLEMS.exists():
        problems = map(json.loads, _PROBLEMS.read_text(encoding="utf-8").splitlines())
        found["problems of gsm8k"] = "\n\n".join(
            f"{p['question']}\n{p['answer']}" for p in problems
        )
    return {name: text[:NUM_CHARACTERS] for name, text in found.items()}
