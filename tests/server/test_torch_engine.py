"""A server whose model runs on torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server import running
from tests.test_export import folder

pytest.importorskip("torch")


def test_it_answers_as_the_native_engine(tmp_path: Path) -> None:
    source = folder(tmp_path, "glm4_0414", "native", max_position=512)
    common: dict[str, Any] = {
        "source": str(source), "family": "glm4_0414", "weights": "float32", "threads": 1,
        "kv_memory": "16MiB",
    }  # fmt: skip
    body = {
        "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0,
        "ignore_eos": True, "loop_guard": False,
    }  # fmt: skip
    models = [{**common, "name": engine, "engine": engine} for engine in ("torch", "native")]
    with running(*models) as server:
        texts = [
            httpx.post(
                f"{server.url}/v1/chat/completions", json={**body, "model": name}, timeout=60
            ).json()["choices"][0]["message"]["content"]
            for name in ("torch", "native")
        ]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 0
