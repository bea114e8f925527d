"""Servers that the tests of this folder share: small models of three families."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glimmer.server.run import Server
from tests.support.server import running
from tests.support.tiny_gguf import tiny_gguf
from tests.test_export import folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Random weights: what they say is noise, but tools and forms hold them to sense."""
    path = tmp_path_factory.mktemp("served")
    common: dict[str, Any] = {"kv_memory": "64MiB", "threads": 1, "max_num_seqs": 8}
    glm4 = folder(path, "glm4", "official", max_position=4096)
    glm45 = folder(path, "glm45", "native", max_position=4096)
    plain = tiny_gguf(path / "plain.gguf", max_position=4096)
    return [
        {"name": "glm-4", "source": str(glm4), "family": "glm4", **common},
        {"name": "glm-4.5", "source": str(glm45), "family": "glm45", **common},
        {"name": "plain", "source": str(plain), **common},
    ]


@pytest.fixture(scope="session")
def server(models: list[dict[str, Any]]) -> Iterator[Server]:
    """Asks for no key. Also called glm-4-plus: what a program for the platform would say."""
    with running(*models, aliases={"glm-4-plus": "glm-4"}) as found:
        yield found


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and usage of whoever runs the tests are left alone."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """What `glimmer serve` does to the loggers of this process ends with the test."""
    loggers = [logging.getLogger(name) for name in ("glimmer.server", "uvicorn")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
