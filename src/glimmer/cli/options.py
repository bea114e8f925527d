"""The options that several commands share. Knows no command and no model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help='A folder, a GGUF file or a release: "demo".')
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
StatsOption = Annotated[
    bool, typer.Option("--stats", help="Tell speed and memory on standard error.")
]

_LOADING = "Model and memory"
_SAMPLING = "Sampling (unset: what the model's release recommends)"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is put into memory."""

    weights: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"],
        typer.Option(help="Convert the weights; auto keeps them.", rich_help_panel=_LOADING),
    ] = "auto"
    activations: Annotated[
        Literal["auto", "int8", "int16"],
        typer.Option(
            help="How int4 weights meet their inputs: int8 is faster, int16 exact; "
            "auto is int16 for small models.",
            rich_help_panel=_LOADING,
        ),
    ] = "auto"
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: one per core.", rich_help_panel=_LOADING)
    ] = None
    max_model_len: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            "--max-model-len",
            help="Longest conversation in tokens. Default: what the model can and memory allows.",
            rich_help_panel=_LOADING,
        ),
    ] = None
    kv_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="At most this for the KV cache: 2GiB.", rich_help_panel=_LOADING
        ),
    ] = None
    kv: Annotated[
        Literal["auto", "float16", "float32", "int8"],
        typer.Option(
            help="What keys and values are kept in; int8 takes half of float16's memory.",
            rich_help_panel=_LOADING,
        ),
    ] = "auto"
    family: Annotated[
        str | None,
        typer.Option(help="Name the family instead of recognising it.", rich_help_panel=_LOADING),
    ] = None
    engine: Annotated[
        Literal["native", "torch"],
        typer.Option(
            help="native is the fast one on a processor; torch runs on a GPU too.",
            rich_help_panel=_LOADING,
        ),
    ] = "native"
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        typer.Option(
            help="Where torch computes; auto is a GPU if there is one.", rich_help_panel=_LOADING
        ),
    ] = "auto"
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="Answer with this adapter (LoRA, P-Tuning); of several with the first, until "
            "/adapter in a chat says otherwise.",
            rich_help_panel=_LOADING,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen. None means what the model's release recommends."""

    temperature: Annotated[
        float | None,
        typer.Option(help="0 always takes the likeliest token.", rich_help_panel=_SAMPLING),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Likeliest tokens up to this total.", rich_help_panel=_SAMPLING),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(help="The k likeliest tokens; 0 for all.", rich_help_panel=_SAMPLING),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(help="Least share of the likeliest token.", rich_help_panel=_SAMPLING),
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: fewer repeats.", rich_help_panel=_SAMPLING)
    ] = None
    presence_penalty: Annotated[
        float | None, typer.Option(help="Per token used already.", rich_help_panel=_SAMPLING)
    ] = None
    frequency_penalty: Annotated[
        float | None, typer.Option(help="Per use of a token.", rich_help_panel=_SAMPLING)
    ] = None
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same answer.", rich_help_panel=_SAMPLING)
    ] = None
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer in tokens.", rich_help_panel=_SAMPLING)
    ] = None
    loop_guard: Annotated[
        bool | None,
        typer.Option(
            "--loop-guard/--no-loop-guard",
            help="End an answer that goes round in circles. Default: in a chat.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="End the answer before it; repeatable.", rich_help_panel=_SAMPLING
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The values that were set, by their names in ``SamplingParams``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value not in (None, [])}


def named_adapters(given: Sequence[str]) -> dict[str, str]:
    """Folders by name, from ``NAME=FOLDER`` or ``FOLDER``, whose last part then is the name and may
    hold "=" itself, as in runs/lr=1e-4.

    Raises:
        InvalidParameterError: two have one name.
    """
    from glimmer.errors import InvalidParameterError

    found: dict[str, str] = {}
    for text in given:
        name, separator, folder = text.partition("=")
        if not separator or "/" in name or Path(text).is_dir():
            name, folder = Path(text).expanduser().resolve().name, text
        if name in found:
            raise InvalidParameterError(
                f"Two adapters are called {name!r}: give them names with NAME=FOLDER."
            )
        found[name] = str(Path(folder).expanduser())
    return found


def spread_options(command: Callable[..., None]) -> Callable[..., None]:
    """Offer each field of the command's dataclass parameters as an option of its own.

    Typer reads a function's signature; this gives it one in which ``sampling: SamplingOptions``
    is replaced by SamplingOptions' fields, and puts the values back together for the call.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if not is_dataclass(hint):
            parameters.append(parameter.replace(annotation=hint))
            continue
        groups[parameter.name] = hint
        field_hints = get_type_hints(hint, include_extras=True)
        parameters += [
            parameter.replace(name=f.name, default=f.default, annotation=field_hints[f.name])
            for f in fields(hint)
        ]

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        command(**values)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters}
    return spread
