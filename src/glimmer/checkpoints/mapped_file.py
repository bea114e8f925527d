"""A file in memory without being read: pages come when they are touched."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glimmer.errors import ModelNotFoundError, UnknownFormatError

Bytes = npt.NDArray[np.uint8]


class MappedFile:
    """A read-only map of a regular file that is not empty.

    The file must not shrink while it is open: touching a page that is gone ends the process
    (SIGBUS), which Python cannot turn into an error.

    Raises ModelNotFoundError (nothing there, or not allowed to read it) or UnknownFormatError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = _map(path)

    def __len__(self) -> int:
        return len(self.data)

    def view(self, offset: int, size_bytes: int) -> Bytes:
        """uint8 ``[size_bytes]``, read-only, without a copy; stays valid when the map is let go."""
        return np.frombuffer(self.data, np.uint8, size_bytes, offset)

    def release(self, offset: int, size_bytes: int) -> None:
        """Lets the operating system drop the pages that lie wholly in this range.

        Views stay valid: touching them reads the file again. Does nothing where the system has no
        madvise.
        """
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end and hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED, start, end - start)

    def use_large_pages(self) -> None:
        """Asks for large pages, for a file that stays mapped. A wish: systems that have none for
        files refuse it, and everything works, a little slower."""
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                self.data.madvise(mmap.MADV_HUGEPAGE)


def _map(path: Path) -> mmap.mmap:
    try:
        # Checked before opening: opening a pipe would wait for a writer.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UnknownFormatError(
                f"{path} is not a regular file; give a model's folder or its file"
            )
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise UnknownFormatError(f"{path} is an empty file; download it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelNotFoundError(f"{path} cannot be opened: {error}") from error
