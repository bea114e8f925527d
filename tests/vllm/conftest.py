"""A front before stand-ins for vLLM, which run the same tiny models on the native engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import glimmer
from glimmer.server.run import Server
from tests.server.conftest import own_data, restored_logging
from tests.support.fake_vllm import FakeVllm, running_fake
from tests.support.server import running
from tests.support.tiny_gguf import tiny_gguf
from tests.test_export import folder

__all__ = ["own_data", "restored_logging"]
# By the name under which the tests of `tests.server` know a model, most of which run here too.
FAMILIES = {"glm-4": "glm4", "glm-4.5": "glm45", "plain": "smollm"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("remote")
    found = {
        name: folder(path, FAMILIES[name], "native", max_position=4096, num_layers=2)
        for name in ("glm-4", "glm-4.5")
    }
    return {**found, "plain": tiny_gguf(path / "plain.gguf", max_position=4096)}


@pytest.fixture(scope="session")
def engines(folders: dict[str, Path]) -> dict[str, glimmer.AsyncLLM]:
    """What the stand-ins run, and what their answers are compared with."""
    return {
        name: glimmer.AsyncLLM(
            glimmer.load(path, family=FAMILIES[name], num_threads=1), kv_memory="64MiB"
        )
        for name, path in folders.items()
    }


@pytest.fixture(scope="session")
def server(folders: dict[str, Path], engines: dict[str, glimmer.AsyncLLM]) -> Iterator[Server]:
    """Called as in `tests.server`, so that the same tests run against it."""
    with ExitStack() as stack:
        models: list[dict[str, Any]] = []
        for name, path in folders.items():
            fake = stack.enter_context(running_fake(FakeVllm(engines[name], name)))
            models.append(
                {
                    "name": name,
                    "source": str(path),
                    "family": FAMILIES[name],
                    "backends": [fake.url],
                }
            )
        yield stack.enter_context(running(*models, aliases={"glm-4-plus": "glm-4"}))
