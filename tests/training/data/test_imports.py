"""Data is prepared where no PyTorch is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["glimmer.training", "glimmer.training.data", "glimmer.training.memory"]
)
def test_no_torch(module: str) -> None:
    heavy = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
    script = f"import sys, {module}; print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
