"""One answer on standard output, as text while it grows or as JSON when it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from glimmer.cli import stats, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from glimmer import LLM, RequestOutput


def answer_once(
    llm: LLM, outputs: Iterator[RequestOutput], *, as_json: bool, show_stats: bool
) -> None:
    """Print the one answer that ``outputs`` brings, and beside it what a person should know."""
    console = terminal.messages()
    if llm.model.notice is not None:
        console.print(llm.model.notice, style="yellow")
    output = None
    thoughts = Thoughts(console)
    try:
        for output in outputs:
            if not as_json:
                thoughts.show(output)
                terminal.write(output.delta)
    finally:
        if not as_json and output is not None:
            terminal.write("\n")
    assert output is not None, "an answer ends with an output that says why"
    if as_json:
        terminal.write(_to_json(llm.model.name, output) + "\n")
    for note in output.notes:
        console.print(note, style="yellow")
    for call in output.tool_calls if not as_json else ():
        console.print(terminal.printable(f"calls {call.name}({call.arguments})"), style="cyan")
    if note := end_note(llm, output):
        console.print(note, style="dim")
    if show_stats:
        console.print(stats.describe(output), style="dim")


class Thoughts:
    """What a model thinks before it answers, dimmed and beside the answer, on standard error."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = False

    def show(self, output: RequestOutput) -> None:
        if output.reasoning_delta:
            self._console.print(
                terminal.printable(output.reasoning_delta), style="dim italic", end=""
            )
            self._open = True
        elif self._open and output.delta:
            self._console.print("\n")
            self._open = False


def end_note(llm: LLM, output: RequestOutput) -> str:
    """Why the answer ends before its time; "" if it does not."""
    if output.finish_reason == "repetition":
        return "(The answer ends here: it repeated itself. --no-loop-guard lets it go on.)"
    if output.finish_reason != "length":
        return ""
    used = output.usage.prompt_tokens + output.usage.completion_tokens
    if used >= llm.max_model_len:
        return f"(The answer ends here: the context of {llm.max_model_len} tokens is full.)"
    return (
        f"(The answer ends here: it has reached max_new_tokens, {output.usage.completion_tokens}.)"
    )


def _to_json(model: str, output: RequestOutput) -> str:
    return json.dumps(
        {
            "model": model,
            "text": output.text,
            "reasoning": output.reasoning,
            "tool_calls": [asdict(call) for call in output.tool_calls],
            "notes": output.notes,
            "finish_reason": output.finish_reason,
            "usage": asdict(output.usage),
            "timing": asdict(output.timing),
        },
        ensure_ascii=False,
    )
