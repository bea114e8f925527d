"""`glimmer infill`: fill the blanks of a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from glimmer.cli.options import (
    JsonOption,
    LoadOptions,
    ModelArgument,
    SamplingOptions,
    spread_options,
)

if TYPE_CHECKING:
    from glimmer import LLM
    from glimmer.infilling import InfillOutput


@spread_options
def infill(
    model: ModelArgument,
    *,
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--prompt",
            help="The text, with [MASK] for a few words, [sMASK] for a sentence, [gMASK] for all "
            "that follows. Without it, standard input.",
        ),
    ] = None,
    method: Annotated[
        Literal["auto", "parts", "substitute"],
        typer.Option(
            help="How what is filled already is shown: as GLM is trained, or put in place of its "
            "blank. auto: what the model was trained for."
        ),
    ] = "auto",
    as_json: JsonOption = False,
    load_options: LoadOptions,
    sampling_options: SamplingOptions,
) -> None:
    """Fill the blanks of a text, one after another. For ChatGLM-6B's kind of network."""
    from glimmer.cli import sampling
    from glimmer.cli.loading import chosen_adapter, open_llm
    from glimmer.cli.prompt_input import read_prompt

    sampling.check(sampling_options)
    text = read_prompt(prompt)
    llm = open_llm(model, load_options)
    params = sampling.choose_params(llm, sampling_options)
    _print(
        llm,
        llm.infill(text, params, method=method, adapter=chosen_adapter(llm), stream=True),
        as_json=as_json,
    )


def _print(llm: LLM, outputs: Iterator[InfillOutput], *, as_json: bool) -> None:
    from glimmer.cli import terminal
    from glimmer.cli.one_shot import end_note

    console = terminal.messages()
    if llm.model.notice is not None:
        console.print(llm.model.notice, style="yellow")
    output = None
    try:
        for output in outputs:
            if not as_json:
                terminal.write(output.delta)
    finally:
        if not as_json and output is not None:
            terminal.write("\n")
    assert output is not None, "a text without a blank is refused"
    if as_json:
        terminal.write(_to_json(llm.model.name, output) + "\n")
    for blank, fill in zip(output.blanks, output.fills, strict=True):
        if note := end_note(llm, fill):
            console.print(f"{blank} {fill.index + 1}: {note}", style="dim")


def _to_json(model: str, output: InfillOutput) -> str:
    return json.dumps(
        {
            "model": model,
            "text": output.text,
            "fills": [
                {"blank": blank, "text": fill.text, "finish_reason": fill.finish_reason}
                for blank, fill in zip(output.blanks, output.fills, strict=True)
            ],
            "finish_reason": output.finish_reason,
            "usage": asdict(output.usage),
        },
        ensure_ascii=False,
    )
