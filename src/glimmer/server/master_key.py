"""The one secret that a server keeps: every key's secret is computed from it."""

from __future__ import annotations

import os
import secrets
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

from glimmer.errors import GlimmerError

MASTER_KEY_VARIABLE = "GLIMMER_MASTER_KEY"
MIN_MASTER_KEY_LENGTH = 32
"""Characters; a file that is made here holds 64 hexadecimal digits."""


class MasterKeyError(GlimmerError):
    """The master key is missing, too short, readable by others, or not the one of these keys."""


def load_master_key(
    path: Path, environ: Mapping[str, str] = os.environ, *, create: bool = True
) -> bytes:
    """The master key from ``GLIMMER_MASTER_KEY``, else from the file ``path``.

    With ``create`` a missing file is made, of 32 random bytes as hexadecimal text and its owner's
    alone (0600). The same text in the variable is the same key.

    Raises:
        MasterKeyError: shorter than 32 characters, or a file that is missing, not to be read or
            written, or that others than its owner may read.
    """
    text = environ.get(MASTER_KEY_VARIABLE)
    if text is not None:
        return _master_key(text, f"The environment variable {MASTER_KEY_VARIABLE}")
    try:
        if create and not path.exists():
            _create_master_key(path)
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read(4096)
    except FileNotFoundError as error:
        hint = "Make its folder first." if create else "Bring back the file that the keys need."
        raise MasterKeyError(f"There is no master key at {path}. {hint}") from error
    except OSError as error:
        raise MasterKeyError(
            f"The master key {path} cannot be used: {error.strerror or error}."
        ) from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise MasterKeyError(
            f"Others may read the master key {path}. Run: chmod 600 {shlex.quote(str(path))}"
        )
    return _master_key(content.decode("utf-8", errors="replace"), f"The file {path}")


def _create_master_key(path: Path) -> None:
    """Complete from the moment it is there: whoever comes second reads the first one's."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def _master_key(text: str, source: str) -> bytes:
    text = text.strip()
    if len(text) < MIN_MASTER_KEY_LENGTH:
        raise MasterKeyError(
            f"{source} holds {len(text)} characters, but a master key needs at least "
            f"{MIN_MASTER_KEY_LENGTH}, such as `openssl rand -hex 32` makes."
        )
    return text.encode("utf-8", errors="surrogateescape")
