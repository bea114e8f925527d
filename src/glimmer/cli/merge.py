"""`glimmer merge`: a model and an adapter become one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from glimmer.cli.convert import (
    FamilyOption,
    ForceOption,
    ProgressBar,
    SourceArgument,
    TargetArgument,
    report_written,
)
from glimmer.cli.options import JsonOption


def merge(
    base: SourceArgument,
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="The folder that the training wrote.")
    ],
    target: TargetArgument,
    *,
    to: Annotated[
        Literal["hf", "official", "gguf"] | None,
        typer.Option(
            help="hf: a folder for transformers and vLLM; official: one for the official code; "
            "gguf: a file for llama.cpp. Default: hf, and official for a prefix."
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Write all weights so. Default: as SRC has them, where DST can."),
    ] = None,
    family: FamilyOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model with an adapter in it, as a new model."""
    from glimmer import merging

    with ProgressBar(target) as progress:
        written = merging.merge(
            base,
            adapter,
            target,
            to=to,
            dtype=dtype,
            family=family,
            overwrite=force,
            progress=progress,
        )
    report_written(written, as_json)
