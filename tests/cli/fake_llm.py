"""Stands in for a model: answers at once, and misbehaves when the question asks for it.

Run as a program it is the `glimmer` command with this model in it, for tests that need a process.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import glimmer
from glimmer import RequestOutput, SamplingParams
from glimmer.errors import GenerationError, PromptTooLongError
from glimmer.outputs import Timing, Usage

NOTICE = "Not a real model."


class FakeLLM:
    """Repeats the last message. Words that begin a question and change that: long, slow, broken,
    stopped, silent, colour, cut."""

    def __init__(self, model: object = None, **options: Any) -> None:
        self.model = SimpleNamespace(name="Fake", family="fake", notice=NOTICE)
        self.options = options
        self.default_params = SamplingParams(temperature=0)
        self.max_model_len = 4096
        self.asked: list[Any] = []
        self.params: list[SamplingParams] = []
        self.used: list[str | None] = []
        """The adapter of each question."""
        self.aborted = 0

    @property
    def adapters(self) -> list[str]:
        return list(self.options.get("adapters") or {})

    def chat(
        self,
        messages: Sequence[dict[str, str]],
        params: SamplingParams,
        *,
        thinking: bool | None,
        adapter: str | None,
        stream: bool,
    ) -> Iterator[RequestOutput]:
        assert stream
        self.asked.append(list(messages))
        self.used.append(adapter)
        self.params.append(params)
        question = messages[-1]["content"]
        if question.startswith("long"):
            raise PromptTooLongError("The prompt has 9999 tokens, but the context has 4096.")
        return self._answer(question)

    def generate(
        self,
        prompts: Sequence[str],
        params: SamplingParams,
        *,
        allow_special: bool,
        adapter: str | None,
        stream: bool,
    ) -> Iterator[RequestOutput]:
        assert stream
        self.asked.append((list(prompts), allow_special))
        self.used.append(adapter)
        self.params.append(params)
        return self._answer(prompts[0])

    def _answer(self, question: str) -> Iterator[RequestOutput]:
        try:
            yield from self._words(question)
        except (GeneratorExit, KeyboardInterrupt):
            self.aborted += 1
            raise

    def _words(self, question: str) -> Iterator[RequestOutput]:
        kind = question.partition(" ")[0]
        if kind == "silent":
            raise KeyboardInterrupt
        text = "\x1b[31mred\x9b0m" if kind == "colour" else f"You said: {question}"
        words = [word + " " for word in text.split(" ")]
        if kind == "slow":
            words *= 1000
        done = ""
        for number, word in enumerate(words, 1):
            if kind == "slow":
                time.sleep(0.02)
            if number == 3 and kind == "broken":
                raise GenerationError("The logits are not numbers.")
            if number == 3 and kind == "stopped":
                raise KeyboardInterrupt
            done += word
            ended = "length" if kind == "cut" else "stop"
            yield self._output(done, word, number, ended if number == len(words) else None)

    def _output(self, text: str, delta: str, count: int, finish_reason: Any) -> RequestOutput:
        return RequestOutput(
            index=0,
            token_ids=tuple(range(count)),
            text=text,
            delta=delta,
            finish_reason=finish_reason,
            logprobs=None,
            usage=Usage(prompt_tokens=7, completion_tokens=count),
            timing=Timing(0.25, 1.5, 28.0, 4.0 if count > 1 else None),
        )


def install() -> None:
    """Make ``glimmer`` load this model, whatever it is asked for."""
    vars(glimmer)["load"] = lambda model, **options: model
    vars(glimmer)["LLM"] = FakeLLM


if __name__ == "__main__":
    from glimmer.cli.main import main

    if os.isatty(0):
        # The first terminal that a session's leader opens becomes its own: Ctrl-C reaches it.
        os.close(os.open(os.ttyname(0), os.O_RDWR))
    install()
    sys.exit(main())
