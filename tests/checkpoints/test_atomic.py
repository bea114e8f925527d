"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from glimmer.checkpoints.atomic import new_file, new_folder
from glimmer.errors import InvalidParameterError, OutputError


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A place in a folder in which nothing else may be left."""
    folder = tmp_path / "out"
    yield folder / "model"
    left = [file.name for file in folder.iterdir()] if folder.exists() else []
    assert left in ([], ["model"])


def make_file(target: Path, content: str = "new", **options: Any) -> None:
    with new_file(target, **options) as stream:
        stream.write(content.encode())


def make_folder(target: Path, content: str = "new", **options: Any) -> None:
    with new_folder(target, **options) as folder:
        (folder / "a").write_text(content)
        (folder / "b").write_text(content)


MAKERS = pytest.mark.parametrize("make", [make_file, make_folder])


def content(target: Path) -> str:
    return (target / "a" if target.is_dir() else target).read_text()


@MAKERS
def test_what_is_written_is_there_in_the_end(target: Path, make: Any) -> None:
    make(target)
    assert content(target) == "new"


def test_nothing_is_at_the_target_before_the_end(target: Path) -> None:
    with new_file(target) as stream:
        stream.write(b"x")
        assert not target.exists()
    with new_folder(target, overwrite=True) as folder:
        (folder / "a").touch()
        assert target.read_bytes() == b"x"
    assert [file.name for file in target.iterdir()] == ["a"]


@MAKERS
def test_folders_on_the_way_are_made(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "some" / "where" / "model")
    assert content(tmp_path / "some" / "where" / "model") == "new"


@MAKERS
def test_what_is_there_stays_unless_told(target: Path, make: Any) -> None:
    make(target, "old")
    with pytest.raises(InvalidParameterError, match=r"exists already.*--force"):
        make(target)
    assert content(target) == "old"
    make(target, "new", overwrite=True)
    assert content(target) == "new"


@pytest.mark.parametrize("making", [new_file, new_folder])
def test_what_came_while_writing_stays(
    target: Path, making: type[AbstractContextManager[Any]]
) -> None:
    with pytest.raises(InvalidParameterError, match="exists already"), making(target):
        target.write_text("of somebody else")
    assert content(target) == "of somebody else"


def fail_half_way(making: Any, target: Path, error: type[BaseException]) -> None:
    with making(target, overwrite=True) as made:
        if making is new_file:
            made.write(b"half")
        else:
            (made / "a").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("making", [new_file, new_folder])
@pytest.mark.parametrize("exists", [True, False])
def test_failing_leaves_nothing_behind_and_the_old_one_there(
    target: Path, making: Any, error: type[BaseException], exists: bool
) -> None:
    if exists:
        (make_file if making is new_file else make_folder)(target, "old")
    with pytest.raises(error):
        fail_half_way(making, target, error)
    assert target.exists() == exists
    if exists:
        assert content(target) == "old"


@MAKERS
def test_a_full_disk_is_told_before_writing(
    target: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(target.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 << 30))
    make(target, size_bytes=3 << 30)
    with pytest.raises(OutputError, match=r"will take 4\.50 GiB, but 3\.00 GiB are free") as caught:
        make(target, size_bytes=9 << 29, overwrite=True)
    assert str(target) in str(caught.value)
    assert content(target) == "new"


@pytest.mark.parametrize("making", [new_file, new_folder])
def test_a_disk_that_fills_up_while_writing(target: Path, making: Any) -> None:
    with pytest.raises(OutputError, match="cannot be written: No space left"), making(target):
        raise OSError(28, "No space left on device")
    assert not target.exists()


@MAKERS
def test_permissions_are_those_of_any_new_file(target: Path, make: Any) -> None:
    before = os.umask(0o027)
    try:
        make(target)
    finally:
        os.umask(before)
    due = 0o750 if target.is_dir() else 0o640
    assert stat.S_IMODE(target.stat().st_mode) == due


@MAKERS
@pytest.mark.parametrize("name", ["x" * 300, "nul\0byte"])
def test_a_name_that_cannot_be(tmp_path: Path, make: Any, name: str) -> None:
    with pytest.raises((OutputError, InvalidParameterError)):
        make(tmp_path / name)
    with pytest.raises((OutputError, InvalidParameterError)):
        make(tmp_path / name / "model")


@MAKERS
def test_a_file_on_the_way(tmp_path: Path, make: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        make(tmp_path / "file" / "model")


@MAKERS
def test_a_link_is_replaced_and_not_followed(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "old", "old")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    make(tmp_path / "link", "new", overwrite=True)
    assert not (tmp_path / "link").is_symlink()
    assert (content(tmp_path / "link"), content(tmp_path / "old")) == ("new", "old")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "old"]


def test_a_file_does_not_replace_a_folder(target: Path) -> None:
    make_folder(target, "old")
    with pytest.raises(InvalidParameterError, match="is a folder"):
        make_file(target, overwrite=True)
    assert content(target) == "old"


def test_a_folder_may_replace_a_file(target: Path) -> None:
    make_file(target, "old")
    make_folder(target, overwrite=True)
    assert content(target) == "new"


def test_a_folder_that_is_more_than_a_model_is_not_replaced(target: Path) -> None:
    make_folder(target, "old")
    (target / "letters").mkdir()
    with pytest.raises(InvalidParameterError, match="holds folders, such as letters"):
        make_folder(target, overwrite=True)
    assert content(target) == "old"


@pytest.mark.parametrize("error", [OSError(18, "Invalid cross-device link"), KeyboardInterrupt()])
def test_the_old_folder_returns_when_the_new_one_cannot_take_its_place(
    target: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    make_folder(target, "old")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to == target and (self / "a").read_text() == "new":
            raise error
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        make_folder(target, overwrite=True)
    assert content(target) == "old"


def test_an_old_folder_that_cannot_be_moved_stays(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(target, "old")

    def failing(self: Path, to: Path) -> Path:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="resource busy"):
        make_folder(target, overwrite=True)
    assert content(target) == "old"


def test_an_old_folder_that_cannot_be_deleted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    make_folder(target, "old")

    def failing(path: Path, **options: Any) -> None:
        if not options:
            raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", failing)
    with pytest.raises(OutputError, match=r"is written, but .* Delete .*\.model\.old\."):
        make_folder(target, overwrite=True)
    assert content(target) == "new"
