"""Files and folders that appear whole or not at all.

What is being written has a temporary name beside the target; it takes the target's name when it is
complete and on disk, and is removed when writing fails, Ctrl-C included.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from glimmer.errors import InvalidParameterError, OutputError


@contextmanager
def new_file(
    target: Path, *, size_bytes: int = 0, overwrite: bool = False, private: bool = False
) -> Iterator[IO[bytes]]:
    """A file open for writing that becomes ``target`` when the block ends well; with ``private``
    it is its owner's alone.

    Raises:
        InvalidParameterError: ``target`` exists, and ``overwrite`` is not set.
        OutputError: the disk holds less than ``size_bytes``, or writing fails.
    """
    _check(target, size_bytes, overwrite)
    if target.is_dir():
        raise InvalidParameterError(f"{target} is a folder; give the name of a file in it.")
    with _errors(target):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if not private:  # as mkstemp's file is
                temporary.chmod(0o666 & ~_umask())
            _refuse_existing(target, overwrite)  # writing took long
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(target: Path, *, size_bytes: int = 0, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder that becomes ``target`` when the block ends well; raises as ``new_file``.

    With ``overwrite`` the old folder stays until the new one is complete; one that holds folders is
    not replaced, since it is more than a model.
    """
    _check(target, size_bytes, overwrite)
    _refuse_folders_inside(target)
    with _errors(target):
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield temporary
            for file in temporary.iterdir():
                _sync(file)
            temporary.chmod(0o777 & ~_umask())
            _refuse_existing(target, overwrite)
            if target.exists():
                _refuse_folders_inside(target)
                _replace_folder(target, temporary)
            else:
                temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _replace_folder(target: Path, new: Path) -> None:
    """For a moment nothing is at ``target``; whatever goes wrong then, the old one returns."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    old = aside / target.name
    try:
        target.rename(old)
        new.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        shutil.rmtree(aside)
        raise
    try:
        shutil.rmtree(aside)
    except OSError as error:
        raise OutputError(
            f"{target} is written, but what it replaces could not be deleted: "
            f"{error.strerror or error}. Delete {aside} yourself."
        ) from error


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise InvalidParameterError(
            f"{target} exists already. Give another name, or allow overwriting it (--force)."
        )


def _refuse_folders_inside(target: Path) -> None:
    with _errors(target):
        inside = target.is_dir() and next((f for f in target.iterdir() if f.is_dir()), None)
    if inside:
        raise InvalidParameterError(
            f"{target} holds folders, such as {inside.name}, and not just a model: it is not "
            "overwritten. Give another name, or delete it yourself."
        )


def _check(target: Path, size_bytes: int, overwrite: bool) -> None:
    if "\0" in str(target):
        raise InvalidParameterError(f"{str(target)!r} cannot be the name of a file.")
    with _errors(target):
        _refuse_existing(target, overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
    if free < size_bytes:
        raise OutputError(
            f"{target} will take {size_bytes / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free "
            f"on the disk of {target.parent}. Free some space or write to another disk."
        )


@contextmanager
def _errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}. Nothing was left behind; "
            "mend the cause and run the same command again."
        ) from error


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
