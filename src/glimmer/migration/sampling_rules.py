"""Differences in how an answer is drawn, and how long it may be."""

from __future__ import annotations

from collections.abc import Iterator

from glimmer.migration.call import UNKNOWN, Call, Hit
from glimmer.migration.detectors import (
    any_of,
    exactly,
    finer_than_hundredths,
    given,
    more_than,
    number,
    out_of_range,
    show,
)
from glimmer.migration.hosted import MAX_OUTPUT
from glimmer.migration.rule import UNLISTED, Rule
from glimmer.migration.target import Target


def _max_tokens(call: Call, target: Target) -> Iterator[Hit]:
    value = number(call.parameters.get("max_tokens"))
    if value is None:
        return
    limits = target.limits(call.parameters.get("model"))
    name, allowed = "any model", MAX_OUTPUT
    if limits is not None and limits[2] is not None:
        name, allowed = limits[0], limits[2]
    if not 1 <= value <= allowed:
        yield Hit(
            "max_tokens",
            f"max_tokens is {show(call.parameters['max_tokens'])}",
            f"Set it to 1 to {allowed}, the most for {name}.",
        )


def _short_answer(call: Call, target: Target) -> Iterator[Hit]:
    value = number(call.parameters.get("max_tokens"))
    if value is None or not 1 <= value < 1024 or not call.is_whole:
        return
    thinking = call.parameters.get("thinking")
    if thinking is UNKNOWN or (isinstance(thinking, dict) and thinking.get("type") == "disabled"):
        return
    limits = target.limits(call.parameters.get("model"))
    if limits is None or limits[0].startswith(("glm-4.5", "glm-4.6", "glm-4.7", "glm-5")):
        yield Hit("max_tokens", f"max_tokens is {show(call.parameters['max_tokens'])}")


def _stop_string(call: Call, _: Target) -> Iterator[Hit]:
    if isinstance(call.parameters.get("stop"), str):
        yield Hit("stop", "stop is a string")


SAMPLING_RULES = (
    Rule(
        id="temperature-range",
        to="hosted",
        severity="warning",
        detects="temperature below 0 or above 1",
        why="The platform takes 0 to 1. Its own SDKs send 0.99 for more; another client's request "
        "may be refused.",
        fix="Use 0 to 1, and try the answers anew: the scale is not the same.",
        source="reference",
        detect=out_of_range("temperature", 0, 1),
    ),
    Rule(
        id="top-p-range",
        to="hosted",
        severity="warning",
        detects="top_p below 0.01 or above 1",
        why="The platform takes 0.01 to 1.",
        fix="Use 0.01 to 1.",
        source="reference",
        detect=out_of_range("top_p", 0.01, 1),
    ),
    Rule(
        id="sdk-clamp",
        to="hosted",
        severity="note",
        detects="temperature of 0 or 1, top_p of 1",
        why="The zai and zhipuai SDKs rewrite it before it is sent: temperature 0 becomes 0.01 "
        "with do_sample=false, 1 becomes 0.99; so does top_p. Plain HTTP and the OpenAI SDK send "
        "it as it is.",
        fix="For one answer always, send do_sample=false yourself.",
        source="sdk",
        detect=any_of(exactly("temperature", 0, 1), exactly("top_p", 1)),
    ),
    Rule(
        id="sampling-decimals",
        to="hosted",
        severity="note",
        detects="temperature or top_p with more than two decimals",
        why="The platform takes two decimals.",
        fix="Round it to hundredths.",
        source="reference",
        detect=finer_than_hundredths("temperature", "top_p"),
    ),
    Rule(
        id="stop-words",
        to="hosted",
        severity="error",
        detects="more than one stop word",
        why="The platform takes a list of one stop word (more: error 1214); here 16 may be given.",
        fix="Keep the one that matters and cut the answer at the others yourself.",
        source="reference",
        detect=more_than("stop", 1),
    ),
    Rule(
        id="stop-string",
        to="hosted",
        severity="note",
        detects="stop as a string",
        why="The platform's reference has a list of one string.",
        fix="Write it as a list of one.",
        source="reference",
        detect=_stop_string,
    ),
    Rule(
        id="logprobs",
        to="hosted",
        severity="error",
        detects="logprobs, top_logprobs",
        why=UNLISTED + "No log probabilities come back.",
        fix="Do without, or keep that part on this machine.",
        source="reference",
        detect=given("logprobs", "top_logprobs", "prompt_logprobs", unless=(None, False)),
    ),
    Rule(
        id="several-answers",
        to="hosted",
        severity="error",
        detects="n above 1, best_of",
        why=UNLISTED + "One answer comes back.",
        fix="Send the request n times.",
        source="reference",
        detect=any_of(out_of_range("n", 0, 1), out_of_range("best_of", 0, 1)),
    ),
    Rule(
        id="penalties",
        to="hosted",
        severity="warning",
        detects="presence_penalty, frequency_penalty, repetition_penalty",
        why=UNLISTED + "Answers may repeat themselves more.",
        fix="Leave it out and look at the answers.",
        source="reference",
        detect=any_of(
            given("presence_penalty", "frequency_penalty", unless=(None, 0, 0.0)),
            given("repetition_penalty", unless=(None, 1, 1.0)),
        ),
    ),
    Rule(
        id="local-sampling",
        to="hosted",
        severity="warning",
        detects="top_k, min_p, logit_bias, ignore_eos, stop_token_ids, loop_guard, priority",
        why=UNLISTED + "It is this server's own, or OpenAI's.",
        fix="Leave it out; top_p and temperature are what there is.",
        source="reference",
        detect=given(
            "top_k",
            "min_p",
            "logit_bias",
            "ignore_eos",
            "stop_token_ids",
            "loop_guard",
            "priority",
            unless=(None, False, 0, 0.0, {}, []),
        ),
    ),
    Rule(
        id="seed",
        to="hosted",
        severity="note",
        detects="seed",
        why="The SDKs send it, but the platform's reference does not list it. Here the same seed "
        "gives the same tokens.",
        fix="Do not rely on it; do_sample=false is the steadiest there is.",
        source="reference",
        detect=given("seed"),
    ),
    Rule(
        id="max-tokens",
        to="hosted",
        severity="error",
        detects="max_tokens of 0, or beyond what the model may write",
        why="Each hosted model has a longest answer; here only the context limits it.",
        fix=f"Set it to 1 to {MAX_OUTPUT}.",
        source="reference",
        endpoints=("chat", "messages"),
        detect=_max_tokens,
    ),
    Rule(
        id="short-answer",
        to="hosted",
        severity="note",
        detects="max_tokens below 1024 for a model that thinks",
        why="GLM-4.5 and later think unless told not to, and what they think is output too: little "
        "or nothing of the answer may be left.",
        fix='Send "thinking": {"type": "disabled"}, or allow 1024 and more.',
        source="reference",
        detect=_short_answer,
    ),
    Rule(
        id="max-completion-tokens",
        to="hosted",
        severity="error",
        detects="max_completion_tokens",
        why=UNLISTED + "The answer would have the model's default length.",
        fix="Call it max_tokens.",
        source="reference",
        detect=given("max_completion_tokens"),
    ),
    Rule(
        id="max-length",
        to="both",
        severity="error",
        detects="max_length",
        why="In the official ChatGLM code it counts prompt and answer together; both servers count "
        "new tokens and call them max_tokens.",
        fix="Send max_tokens: the longest answer alone.",
        source="code",
        detect=given("max_length"),
    ),
)
