"""Sampling values as a person gives and reads them, on the command line and in a conversation."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glimmer.cli import terminal
from glimmer.cli.options import SamplingOptions
from glimmer.errors import InvalidParameterError

if TYPE_CHECKING:
    from glimmer import LLM, SamplingParams


def _seed(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _switch(text: str) -> bool | None:
    values = {"true": True, "false": False, "none": None}
    if text.lower() not in values:
        raise ValueError
    return values[text.lower()]


_PARSERS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "temperature": (float, "a number"),
    "top_p": (float, "a number"),
    "top_k": (int, "a whole number"),
    "min_p": (float, "a number"),
    "repetition_penalty": (float, "a number"),
    "presence_penalty": (float, "a number"),
    "frequency_penalty": (float, "a number"),
    "seed": (_seed, "a whole number or none"),
    "max_new_tokens": (int, "a whole number"),
    "loop_guard": (_switch, "true, false or none"),
    "stop": (str, "a text"),
}
NAMES = tuple(_PARSERS)
"""What can be set: the same on the command line and in a conversation."""


def check(options: SamplingOptions) -> None:
    """Refuse a wrong value before a model is loaded for it. Raises InvalidParameterError."""
    import glimmer

    glimmer.SamplingParams(**options.given())


def choose_params(llm: LLM, options: SamplingOptions) -> SamplingParams:
    """The release's recommendation, changed by what was given."""
    given = options.given()
    params = replace(llm.default_params, **given)
    if note := effect_note(params, given):
        terminal.messages().print(note, style="yellow")
    return params


def effect_note(params: SamplingParams, given: Container[str]) -> str | None:
    """A word on those of the names in ``given`` that change nothing, if there are any."""
    drawing = ("top_p", "top_k", "min_p", "seed")
    idle = [name for name in drawing if name in given] if params.temperature == 0 else []
    if not idle:
        return None
    return (
        f"note: {', '.join(idle)} has no effect at temperature 0, which always takes the likeliest "
        "token; set a temperature as well."
    )


def parse(text: str) -> dict[str, Any]:
    """Values from ``name=value ...``, quoted as in a shell; ``stop`` may come more than once.

    Raises:
        InvalidParameterError: not of that form, an unknown name, or not a value of its kind.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidParameterError(f"The quotes do not close in {text!r} ({error}).") from None
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in _PARSERS:
            raise InvalidParameterError(
                f"Parameters look like temperature=0.8, but this is {word!r}. "
                f"The names are {', '.join(NAMES)}."
            )
        parser, kind = _PARSERS[name]
        try:
            parsed = parser(value)
        except ValueError:
            raise InvalidParameterError(f"{name} must be {kind}, but it is {value!r}.") from None
        if name == "stop":
            # An empty text ends nothing; alone it takes the stop strings away.
            values["stop"] = (*values.get("stop", ()), *([value] if value else []))
        else:
            values[name] = parsed
    return values


def describe(params: SamplingParams) -> str:
    """One ``name=value`` a line, as ``parse`` reads them."""
    lines = []
    for name in NAMES:
        value = getattr(params, name)
        values = value or ("",) if name == "stop" else (value,)
        lines += [f"{name}={shlex.quote(str(v)) if v != '' else ''}" for v in values]
    return "\n".join(lines)
