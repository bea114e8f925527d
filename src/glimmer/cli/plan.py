"""`glimmer plan`: what memory a model takes, before it is downloaded, or a run that tunes it."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

import typer

from glimmer.cli.options import JsonOption

_FINETUNE = "Training (--finetune)"


def plan(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A release, a model's folder, config.json or GGUF."),
    ],
    *,
    context: Annotated[
        str | None,
        typer.Option(metavar="TOKENS", help="Such as 8192 or 32K. Default: the model's, up to 8K."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Conversations at once.")] = 1,
    weights: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"],
        typer.Option(help="What weights are converted to at load; auto keeps them."),
    ] = "auto",
    kv: Annotated[
        Literal["float16", "float32"], typer.Option(help="What keys and values are kept in.")
    ] = "float16",
    family: Annotated[
        str | None, typer.Option(help="Name the family instead of recognising it.")
    ] = None,
    finetune: Annotated[
        Literal["lora", "qlora", "ptuning", "freeze", "full"] | None,
        typer.Option(help="Tell what training takes instead.", rich_help_panel=_FINETUNE),
    ] = None,
    objective: Annotated[
        Literal["sft", "dpo"] | None,
        typer.Option(
            help="sft: from answers; dpo: from preferences, of two texts each [sft].",
            rich_help_panel=_FINETUNE,
        ),
    ] = None,
    device: Annotated[
        Literal["cpu", "gpu"] | None,
        typer.Option(
            help="Where it will run [cpu]. A processor trains float16 and integers as float32.",
            rich_help_panel=_FINETUNE,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Texts or pairs at once [1].", rich_help_panel=_FINETUNE),
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Of each text, such as 2048 or 4K. Default: the model's, up to 2K.",
            rich_help_panel=_FINETUNE,
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="LoRA's rank [8].", rich_help_panel=_FINETUNE)
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        typer.Option(
            help="Of the weights; auto keeps them, and takes float32 for freeze and full and, on a "
            "processor, for float16 and integers.",
            rich_help_panel=_FINETUNE,
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute activations twice rather than keep them.",
            rich_help_panel=_FINETUNE,
        ),
    ] = False,
    prefix_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Of P-Tuning's prefix [128].", rich_help_panel=_FINETUNE),
    ] = None,
    prefix_projection: Annotated[
        bool,
        typer.Option(
            "--prefix-projection",
            help="P-Tuning's prefix comes of a two-layer network.",
            rich_help_panel=_FINETUNE,
        ),
    ] = False,
    trained_layers: Annotated[
        int | None,
        typer.Option(
            min=1, help="The last layers that freeze trains [2].", rich_help_panel=_FINETUNE
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the memory a model takes on this machine. Downloads nothing, loads nothing."""
    choices = {
        "objective": objective,
        "device": device,
        "batch_size": batch_size,
        "length": None if length is None else parse_tokens(length),
        "lora_rank": rank,
        "dtype": dtype,
        "gradient_checkpointing": gradient_checkpointing or None,
        "prefix_tokens": prefix_tokens,
        "prefix_projection": prefix_projection or None,
        "trained_layers": trained_layers,
    }
    if finetune is not None:
        from glimmer.cli.plan_finetune import print_finetune_plan

        serving = {"--context": context is not None, "--batch": batch != 1,
                   "--weights": weights != "auto", "--kv": kv != "float16"}  # fmt: skip
        _refuse(serving, "is about answering, and --finetune about training: leave it out")
        print_finetune_plan(model, family, {"method": finetune, **choices}, as_json)
        return
    named = {f"--{name.replace('lora_', '').replace('_', '-')}": value is not None
             for name, value in choices.items()}  # fmt: skip
    _refuse(named, "needs --finetune")
    from glimmer import native
    from glimmer.cli import terminal
    from glimmer.model_memory import fitting_context, memory_of

    tokens = None if context is None else parse_tokens(context)
    memory = memory_of(
        model, context=tokens, batch=batch, weights=weights, kv_dtype=kv, family=family
    )
    available = native.available_memory()
    fits = available is None or memory.plan.peak <= available
    advice = None
    if not fits:
        assert available is not None
        advice = fitting_context(memory, available)
    if as_json:
        report = _report(memory, available, fits, advice)
        terminal.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        return
    terminal.tables().print(_table(memory, available))
    if fits:
        terminal.write("It fits.\n")
    else:
        terminal.write(f"It does not fit. {advice or 'No smaller form of it fits either.'}\n")


def _refuse(options: dict[str, bool], why: str) -> None:
    from glimmer.errors import UsageError

    for name, is_given in options.items():
        if is_given:
            raise UsageError(f"{name} {why}.")


def parse_tokens(text: str) -> int:
    """Tokens from "8192", "32K" or "1M" (of 1024).

    Raises:
        InvalidParameterError: not of that form.
    """
    from glimmer.errors import InvalidParameterError

    match = re.fullmatch(r"(\d{1,9})([KkMm]?)", text.strip())
    if match is None:
        raise InvalidParameterError(f"A context must look like 8192 or 32K, but it is {text!r}.")
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()]


def _report(memory: Any, available: int | None, fits: bool, advice: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": memory.name,
        "family": memory.family,
        "context": memory.context,
        "batch": memory.batch,
        "weights": memory.weights,
        "bytes": asdict(memory.plan),
        "running_bytes": memory.plan.running,
        "peak_bytes": memory.plan.peak,
        "available_bytes": available,
        "fits": fits,
        "advice": advice,
    }


def _table(memory: Any, available: int | None) -> object:
    from rich.table import Table

    from glimmer.cli.quantities import show_bytes

    table = Table.grid(padding=(0, 2))
    rows = [
        ("weights", memory.plan.weights, f"{memory.weights}, packed for the processor"),
        (
            "KV cache",
            memory.plan.kv_cache,
            f"{memory.batch} x {memory.context} tokens, {memory.kv_dtype}",
        ),
        ("working set", memory.plan.working, "the buffers of one step"),
        ("tokenizer", memory.plan.tokenizer, ""),
        ("program", memory.plan.program, ""),
        ("running", memory.plan.running, "all of these"),
        ("peak", memory.plan.peak, "loading included"),
        ("free", available, "on this machine"),
    ]
    table.add_row("model", memory.name, memory.family)
    for name, size, remark in rows:
        table.add_row(name, "-" if size is None else show_bytes(size), remark)
    return table
