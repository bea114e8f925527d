"""Differences in what a request asks for beside messages: tools, forms, thinking, names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from glimmer.migration.call import UNKNOWN, Call, Hit
from glimmer.migration.detectors import given, not_one_of, show, wrong_length
from glimmer.migration.rule import UNLISTED, Rule
from glimmer.migration.target import Target


def _thinking_type(call: Call, _: Target) -> Iterator[Hit]:
    value = call.parameters.get("thinking")
    if value is None or value is UNKNOWN:
        return
    kind = value.get("type") if isinstance(value, dict) else value
    if kind is not UNKNOWN and kind not in ("enabled", "disabled"):
        yield Hit("thinking", f"thinking is {show(kind)}")
    elif isinstance(value, dict) and (extra := set(value) - {"type", "clear_thinking"}):
        yield Hit("thinking", f"thinking has {', '.join(sorted(map(str, extra)))}")


def _json_schema(call: Call, _: Target) -> Iterator[Hit]:
    value = call.parameters.get("response_format")
    kind: Any = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("text", "json_object"):
        yield Hit("response_format", f"response_format is {show(kind)}")


OPTION_RULES = (
    Rule(
        id="tool-choice",
        to="hosted",
        severity="error",
        detects='tool_choice other than "auto"',
        why='The platform has "auto" alone; here "none", "required" and a named tool work too.',
        fix='For "none" leave out tools; for the others leave one tool, ask for the call in the '
        "prompt, and check that it came.",
        source="reference",
        detect=not_one_of("tool_choice", "auto"),
    ),
    Rule(
        id="json-schema",
        to="hosted",
        severity="error",
        detects='response_format other than "text" and "json_object"',
        why='The platform has "text" and "json_object"; here a schema binds the answer.',
        fix='Send {"type": "json_object"}, put the schema into the prompt, and check the answer '
        "against it.",
        source="reference",
        detect=_json_schema,
    ),
    Rule(
        id="constraints",
        to="hosted",
        severity="error",
        detects="regex, grammar, choice, guided_* and structured_outputs",
        why=UNLISTED + "Nothing there binds the answer to a form.",
        fix='Ask for the form in the prompt, with {"type": "json_object"} for JSON, and check it.',
        source="reference",
        detect=given(
            "regex",
            "grammar",
            "choice",
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "structured_outputs",
        ),
    ),
    Rule(
        id="reasoning",
        to="hosted",
        severity="warning",
        detects="reasoning, enable_thinking, chat_template_kwargs",
        why=UNLISTED + "Thinking is switched by another parameter there.",
        fix='Send "thinking": {"type": "enabled"} or {"type": "disabled"}; this server takes it on '
        "/api/paas/v4 too.",
        source="reference",
        detect=given("reasoning", "enable_thinking", "chat_template_kwargs"),
    ),
    Rule(
        id="reasoning-effort",
        to="hosted",
        severity="note",
        detects="reasoning_effort",
        why="It has an effect for GLM-5.2 and later; other models know on and off alone.",
        fix='For other models send "thinking": {"type": "enabled"} or {"type": "disabled"}.',
        source="sdk",
        detect=given("reasoning_effort"),
    ),
    Rule(
        id="thinking-type",
        to="hosted",
        severity="error",
        detects='thinking other than {"type": "enabled" | "disabled", "clear_thinking": ...}',
        why='The platform knows the types "enabled" and "disabled", and clear_thinking.',
        fix='Send {"type": "enabled"} or {"type": "disabled"}.',
        source="reference",
        detect=_thinking_type,
    ),
    Rule(
        id="request-id-length",
        to="hosted",
        severity="warning",
        detects="request_id shorter than 6 or longer than 64 characters",
        why="The platform asks for 6 to 64 characters (so its tokenizer page; the chat page names "
        "no length).",
        fix="Send a UUID, or leave it out.",
        source="reference",
        endpoints=("chat", "embeddings"),
        detect=wrong_length("request_id", 6, 64),
    ),
    Rule(
        id="user-id-length",
        to="hosted",
        severity="error",
        detects="user_id shorter than 6 or longer than 128 characters",
        why="The platform asks for 6 to 128 characters.",
        fix="Fill it up, or leave it out.",
        source="reference",
        detect=wrong_length("user_id", 6, 128),
    ),
    Rule(
        id="user",
        to="hosted",
        severity="note",
        detects="user",
        why="The platform calls it user_id.",
        fix="Send user_id, of 6 to 128 characters.",
        source="reference",
        detect=given("user"),
    ),
    Rule(
        id="stream-options",
        to="hosted",
        severity="note",
        detects="stream_options",
        why=UNLISTED + "Its chunks have a usage field of their own.",
        fix="Leave it out and read usage from the last chunk.",
        source="reference",
        detect=given("stream_options"),
    ),
    Rule(
        id="openai-extras",
        to="hosted",
        severity="warning",
        detects="parallel_tool_calls, modalities, audio, prediction, service_tier, store, ...",
        why=UNLISTED,
        fix="Leave it out.",
        source="reference",
        detect=given(
            "parallel_tool_calls",
            "modalities",
            "audio",
            "prediction",
            "service_tier",
            "store",
            "verbosity",
            "web_search_options",
            "prompt_cache_key",
            "safety_identifier",
        ),
    ),
    Rule(
        id="hosted-extras",
        to="local",
        severity="warning",
        detects="sensitive_word_check, meta, extra, watermark_enabled, web_search_options",
        why="It asks for what the platform alone does: nothing here checks words, plays "
        "CharGLM's roles, completes for CodeGeeX or marks output. It is ignored, and a header of "
        "the answer names it.",
        fix="Leave it out, and do what it was for in the program.",
        source="here",
        detect=given(
            "sensitive_word_check", "meta", "extra", "watermark_enabled", "web_search_options"
        ),
    ),
    Rule(
        id="platform-parameters",
        to="local",
        severity="note",
        detects="do_sample, request_id, user_id, tool_stream",
        why="They are obeyed on /api/paas/v4. On /v1 they are ignored, and a header of the answer "
        "names them.",
        fix="Use the base URL of /api/paas/v4, or say it OpenAI's way: temperature 0 for "
        "do_sample=false.",
        source="here",
        detect=given("do_sample", "request_id", "user_id", "tool_stream"),
    ),
    Rule(
        id="functions",
        to="both",
        severity="error",
        detects="functions, function_call",
        why="That is the form before tools, which ChatGLM3's own demo server took too. This server "
        "refuses it, and the platform does not list it.",
        fix='Send tools=[{"type": "function", "function": ...}] and tool_choice; read tool_calls.',
        source="reference",
        detect=given("functions", "function_call"),
    ),
)
