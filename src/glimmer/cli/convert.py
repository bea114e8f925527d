"""`glimmer convert` and `glimmer quantize`: a model in another layout or in fewer bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from glimmer.cli.options import JsonOption

if TYPE_CHECKING:
    from glimmer.export import Progress, Written

SourceArgument = Annotated[
    str, typer.Argument(metavar="SRC", help="A model's folder, its GGUF file, or a release.")
]
TargetArgument = Annotated[
    Path, typer.Argument(metavar="DST", help="The folder or GGUF file to write.")
]
FamilyOption = Annotated[
    str | None, typer.Option(help="Name the family instead of recognising it.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")]


def convert(
    source: SourceArgument,
    target: TargetArgument,
    *,
    to: Annotated[
        Literal["hf", "gguf", "packed"],
        typer.Option(
            help="hf: a folder for transformers and vLLM; gguf: a file for llama.cpp; packed: a "
            "folder that Glimmer maps as it lies, so that it starts at once."
        ),
    ],
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Write all weights so. Default: as they are, where DST can hold that."),
    ] = None,
    family: FamilyOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model in another layout, tokenizer and chat template included."""
    from glimmer import export

    with ProgressBar(target) as progress:
        written = export.convert(
            source, target, to, dtype=dtype, family=family, overwrite=force, progress=progress
        )
    report_written(written, as_json)


def quantize(
    source: SourceArgument,
    target: TargetArgument,
    *,
    to: Annotated[
        Literal["int8", "int4", "q8_0", "q4_0", "q4_K"],
        typer.Option(
            help="int8, int4: a folder with ChatGLM's own row scales; the others: a GGUF file.",
            case_sensitive=False,
        ),
    ],
    family: FamilyOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model in fewer bits."""
    from glimmer import export

    with ProgressBar(target) as progress:
        written = export.quantize_model(
            source,
            target,
            "q4_k" if to == "q4_K" else to,
            family=family,
            overwrite=force,
            progress=progress,
        )
    report_written(written, as_json)


class ProgressBar:
    """A progress bar on standard error; nothing where that is no terminal."""

    def __init__(self, target: Path) -> None:
        from glimmer.cli.progress import byte_progress

        self._bar = byte_progress(transient=True)
        self._target = target
        self._task = self._bar.add_task(f"Writing {target}", total=None)

    def __enter__(self) -> Progress:
        self._bar.start()
        return lambda done, total: self._bar.update(self._task, advance=done, total=total)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: object,
    ) -> None:
        self._bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._bar.console.print(
                f"Stopped: nothing was written to {self._target}, and nothing is left behind. The "
                "same command starts again from the beginning."
            )


def report_written(written: Written, as_json: bool) -> None:
    from glimmer.cli import terminal
    from glimmer.cli.quantities import show_bytes, show_count

    if as_json:
        report = {
            "path": str(written.path),
            "size_bytes": written.size_bytes,
            "weights_by_dtype": dict(written.dtypes),
        }
        terminal.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        return
    kinds = ", ".join(f"{show_count(n)} in {dtype}" for dtype, n in written.dtypes.items())
    terminal.write(f"{written.path}: {show_bytes(written.size_bytes)}, weights: {kinds}\n")
