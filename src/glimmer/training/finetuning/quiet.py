"""What the libraries of the training side say to each other is not for the user."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

# By the beginning of the message: warnings about one library's use of another.
_MESSAGES = (
    # PEFT and TRL call transformers' activation checkpointing by its old name.
    "`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated",
)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Neither these warnings nor transformers' own bars and notices, inside the block."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for message in _MESSAGES:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
