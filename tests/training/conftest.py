"""Libraries of the training side warn about each other; that is no failure of ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet() -> Iterator[None]:
    from glimmer.training.finetuning.quiet import quiet_libraries

    with quiet_libraries():
        yield
