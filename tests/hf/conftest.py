"""What the tests of the bridge need: torch, one thread of it, and no progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

# Without the training side there is nothing to test here.
collect_ignore_glob = [] if find_spec("torch") and find_spec("transformers") else ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tests share a machine, and tiny networks gain nothing from more."""
    import torch
    import transformers

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)
