"""`glimmer chat`: a conversation at a terminal, or one answer to a prompt that is given."""

from __future__ import annotations

import sys
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
def chat(
    model: ModelArgument = "demo",
    *,
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p", "--prompt", help="Ask once and exit. Piped text is added to it as a document."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Think first or not, for models that can do both."),
    ] = None,
    as_json: JsonOption = False,
    show_stats: StatsOption = False,
    load_options: LoadOptions,
    sampling_options: SamplingOptions,
) -> None:
    """Chat with a model; with -p or piped text, ask it once."""
    from glimmer.cli import sampling
    from glimmer.cli.conversation import Conversation
    from glimmer.cli.loading import chosen_adapter, open_llm
    from glimmer.cli.prompt_input import read_question
    from glimmer.errors import UsageError

    sampling.check(sampling_options)
    question = read_question(prompt)
    conversation = Conversation(system, think)
    if question is not None:
        from glimmer.cli.one_shot import answer_once

        llm = open_llm(model, load_options)
        params = sampling.choose_params(llm, sampling_options)
        outputs = llm.chat(
            conversation.messages(question),
            params,
            thinking=think,
            adapter=chosen_adapter(llm),
            stream=True,
        )
        answer_once(llm, outputs, as_json=as_json, show_stats=show_stats)
        return
    if as_json or not sys.stdout.isatty():
        raise UsageError(
            "A conversation needs a terminal to print to. Ask once with -p TEXT, or pipe text in."
        )
    from glimmer.cli.session import ChatSession

    llm = open_llm(model, load_options)
    params = sampling.choose_params(llm, sampling_options)
    ChatSession(llm, params, conversation, show_stats=show_stats).run()
