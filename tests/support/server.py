"""A real server on a port of its own, in a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from glimmer.server.config import load_config
from glimmer.server.run import Server


@contextmanager
def running(
    *models: dict[str, Any], wait: bool = True, verify: Any = True, **values: Any
) -> Iterator[Server]:
    """Serve until the end of the block; each model is what ``ModelConfig`` takes."""
    with TemporaryDirectory() as folder:
        own = {
            "jobs_dir": f"{folder}/jobs",
            "port": 0,
            "database": f"{folder}/server.db",
            "log_level": "warning",
        }
        server = Server(load_config(models=list(models), **{**own, **values}))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while wait and httpx.get(f"{server.url}/health", verify=verify).status_code == 503:
                time.sleep(0.02)
            yield server
        finally:
            server.should_exit = True
            thread.join()
