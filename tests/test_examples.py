"""The examples run, against a server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.demo_model import demo_gguf
from tests.support.server import running

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("path", ["/v1", "/api/paas/v4"])
def test_the_same_program_at_both_addresses(path: str) -> None:
    model: dict[str, Any] = {"name": "demo", "source": str(demo_gguf()), "kv_memory": "256MiB"}
    with running(model, aliases={"glm-4.5-air": "demo"}) as server:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "same_program.py")],
            env={**os.environ, "BASE_URL": server.url + path},
            capture_output=True,
            text=True,
            check=True,
        )
    whole, counts, pieces = done.stdout.splitlines()
    assert "Paris" in whole
    assert counts.split() == ["stop", "40", "8"]
    assert pieces.replace("|", "") == whole
