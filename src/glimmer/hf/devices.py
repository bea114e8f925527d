"""Where torch computes: what this machine has, and what there is no memory for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from glimmer.errors import InvalidParameterError, OutOfMemoryError

# What torch says, without an exception of its own, on a processor and on MPS.
_NO_MEMORY = ("can't allocate memory", "out of memory")


def find_device(name: str | int | torch.device) -> torch.device:
    """The device of that name, such as "cuda:1" or "meta"; of "auto" the best one here.

    Raises:
        InvalidParameterError: it is unknown, or not in this machine.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(),
             "mps": torch.backends.mps.is_available()}  # fmt: skip
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not there.get(device.type, True) or _is_beyond(device):
        known = ", ".join(kind for kind, found in there.items() if found)
        raise InvalidParameterError(
            f"There is no device {str(name)!r:.80}; this machine has {known}. --device auto takes "
            "the best."
        )
    return device


def _is_beyond(device: torch.device) -> bool:
    """Whether it is a GPU of a number that is not there."""
    return device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()


def out_of_memory(error: BaseException) -> bool:
    """Whether torch raised it for lack of memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in _NO_MEMORY)
    )


@contextmanager
def memory_errors(message: str) -> Iterator[None]:
    """torch's lack of memory as OutOfMemoryError with this message, and torch's own behind it."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what is kept for later is free for who tries again
        first = str(error).partition("\n")[0]
        raise OutOfMemoryError(f"{message} ({first:.300})") from error
