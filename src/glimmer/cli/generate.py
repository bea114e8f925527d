"""`glimmer generate`: continue a text as it is, without a chat template."""

from __future__ import annotations

from typing import Annotated

import typer

from glimmer.cli.options import (
    JsonOption,
    LoadOptions,
    ModelArgument,
    SamplingOptions,
    StatsOption,
    spread_options,
)


@spread_options
def generate(
    model: ModelArgument,
    *,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="The text. Without it, standard input.")
    ] = None,
    special: Annotated[
        bool, typer.Option("--special", help="Control tokens written in the prompt count as such.")
    ] = False,
    as_json: JsonOption = False,
    show_stats: StatsOption = False,
    load_options: LoadOptions,
    sampling_options: SamplingOptions,
) -> None:
    """Continue a text as it is: no roles, no chat template."""
    from glimmer.cli import sampling
    from glimmer.cli.loading import chosen_adapter, open_llm
    from glimmer.cli.one_shot import answer_once
    from glimmer.cli.prompt_input import read_prompt

    sampling.check(sampling_options)
    text = read_prompt(prompt)
    llm = open_llm(model, load_options)
    params = sampling.choose_params(llm, sampling_options)
    outputs = llm.generate(
        [text], params, allow_special=special, adapter=chosen_adapter(llm), stream=True
    )
    answer_once(llm, outputs, as_json=as_json, show_stats=show_stats)
