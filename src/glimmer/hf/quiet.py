"""What the libraries below say to each other is not for the user. Imports none of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# torchao tells of kernels for other machines, torch of how torchao registers its enumerations, and
# bitsandbytes of a kernel that it would fetch from a hub.
_TALKATIVE = ("torchao", "torch.utils._pytree", "bitsandbytes")


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Without their warnings, which come when they are imported."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
