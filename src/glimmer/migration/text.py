"""Finds by patterns what differs in files that are not Python: addresses, variables, parameters.

A pattern sees a line and knows no language, so only names that mean nothing else are looked for,
and only in files that speak of one of the two sides or of a chat API at all.
"""

from __future__ import annotations

import json
import re
from typing import Any

from glimmer.migration.addresses import Endpoint, endpoint_of
from glimmer.migration.call import UNKNOWN, Call
from glimmer.migration.finding import FileFindings
from glimmer.migration.rules import RULES, check_call
from glimmer.migration.surroundings import ENVIRONMENT, check_address, check_environment
from glimmer.migration.target import Target

_SPEAKS_OF = re.compile(
    r"chat/completions|chat\.completions|bigmodel\.cn|api\.z\.ai|zhipu|chatglm|api\.openai\.com"
    r"|openai|/v1/(embeddings|completions|messages|responses)|ZAI_|127\.0\.0\.1|localhost",
    re.IGNORECASE,
)
# Names that these lines can hold by themselves; "n", "stop" and others are words of many languages.
_PARAMETERS = (
    *("temperature", "top_p", "top_k", "min_p", "logprobs", "top_logprobs", "logit_bias"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "best_of"),
    *("max_tokens", "max_completion_tokens", "max_length", "tool_choice", "parallel_tool_calls"),
    *("stream_options", "reasoning_effort", "enable_thinking", "function_call", "guided_json"),
    *("request_id", "user_id", "do_sample", "sensitive_word_check", "stop", "seed", "model"),
)
_QUOTE = r"\\?[\"']"
_PARAMETER = re.compile(
    rf"(?<![\w.$-]){_QUOTE}?(?P<name>{'|'.join(_PARAMETERS)}){_QUOTE}?\s*[:=]\s*"
    rf"(?P<value>-?\d+(?:\.\d+)?(?![\w.])|true\b|false\b|null\b|{_QUOTE}[^\"'\\]*{_QUOTE}"
    rf"|\[[^\]\[{{}}]*\]|[{{\[(\w$])?",
)
_KIND = re.compile(rf"{_QUOTE}?\btype{_QUOTE}?\s*:\s*{_QUOTE}(?P<kind>[a-z_]+){_QUOTE}")
_MEDIA = ("image_url", "video_url", "file_url", "input_audio", "input_image")
_TOOLS = ("web_search", "retrieval", "mcp", "code_interpreter", "drawing_tool", "web_browser")
_VARIABLE = re.compile(rf"\b(?:{'|'.join(ENVIRONMENT)})\b")
_PATH = re.compile(r"(?<=[\w}])(/(?:api/paas/v4|v1))?/[\w/]+\b")
_MAX_LINE = 10_000
_HOTTEST = 2


def speaks_of_an_api(text: str) -> bool:
    """Whether the file is worth reading."""
    return _SPEAKS_OF.search(text) is not None


def check_text(text: str, target: Target, findings: FileFindings) -> None:
    """Add what is found in one file's text."""
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > _MAX_LINE:
            continue  # minified or data: nobody edits it
        check_address(line, number, findings)
        for name in dict.fromkeys(_VARIABLE.findall(line)):
            check_environment(name, number, findings)
        _check_endpoints(line, number, target, findings)
        for match in _PARAMETER.finditer(line):
            _check_parameter(match, number, target, findings)
        for match in _KIND.finditer(line):
            _check_kind(match["kind"], number, target, findings)


def _check_parameter(
    match: re.Match[str], line: int, target: Target, findings: FileFindings
) -> None:
    name, value = match["name"], _value(match["value"])
    if name in ("stop", "model", "request_id", "user_id", "seed") and value is UNKNOWN:
        return
    if name == "temperature" and isinstance(value, int | float) and value > _HOTTEST:
        return  # of the weather
    if name == "function_call" and not isinstance(value, str):
        return  # also the name of a field of answers
    endpoint: Endpoint = "chat"
    if name == "model" and isinstance(value, str) and value.startswith(("embedding", "text-embed")):
        endpoint = "embeddings"
    check_call(Call(endpoint, {name: value}, line, is_whole=False), target, findings)


def _check_kind(kind: str, line: int, target: Target, findings: FileFindings) -> None:
    parameters: dict[str, Any] = {}
    if kind == "json_schema":
        parameters["response_format"] = {"type": kind}
    elif kind in _MEDIA:
        parameters["messages"] = [{"content": [{"type": kind}]}]
    elif kind in _TOOLS:
        parameters["tools"] = [{"type": kind}]
    if parameters:
        check_call(Call("chat", parameters, line, is_whole=False), target, findings)


def _check_endpoints(line: str, number: int, target: Target, findings: FileFindings) -> None:
    for match in _PATH.finditer(line):
        if match[1]:
            endpoint = endpoint_of(match[0])
            rule = RULES["endpoint-hosted" if target.direction == "hosted" else "endpoint-local"]
            if endpoint in rule.endpoints:
                check_call(Call(endpoint, {}, number, is_whole=False), target, findings)


def _value(text: str | None) -> Any:
    if text is None:
        return UNKNOWN
    text = text.replace('\\"', '"').replace("\\'", "'").replace("'", '"')
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return UNKNOWN
