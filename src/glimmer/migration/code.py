"""Finds in Python source what differs. The source is parsed, never imported or run."""

from __future__ import annotations

import ast
import warnings
from typing import Any

from glimmer.catalogue import find_release
from glimmer.migration.addresses import Endpoint, endpoint_of
from glimmer.migration.call import UNKNOWN, Call
from glimmer.migration.finding import FileFindings
from glimmer.migration.literals import Literals, dotted
from glimmer.migration.requests import as_call
from glimmer.migration.rules import RULES, check_call
from glimmer.migration.surroundings import (
    check_address,
    check_client,
    check_environment,
    check_key,
)
from glimmer.migration.target import Target

_SDKS = ("openai", "zai", "zhipuai", "anthropic", "langchain", "langchain_openai", "glimmer")

# How a method's name ends; the first that fits counts.
_METHODS: tuple[tuple[str, Endpoint], ...] = (
    ("chat.completions.create", "chat"),
    ("chat.completions.parse", "chat"),
    ("chat.completions.stream", "chat"),
    ("chat.completions.with_raw_response.create", "chat"),
    ("chat.completions.with_streaming_response.create", "chat"),
    ("chat.asyncCompletions.create", "chat"),
    ("completions.create", "completions"),
    ("responses.create", "responses"),
    ("responses.stream", "responses"),
    ("embeddings.create", "embeddings"),
    ("threads.messages.create", "assistant"),
    ("messages.create", "messages"),
    ("messages.stream", "messages"),
    ("messages.count_tokens", "messages"),
    ("images.generations", "images"),
    ("images.async_generations", "images"),
    ("images.generate", "images"),
    ("images.edit", "images"),
    ("videos.generations", "videos"),
    ("audio.speech", "audio"),
    ("audio.speech.create", "audio"),
    ("audio.transcriptions.create", "audio"),
    ("audio.customization", "audio"),
    ("moderations.create", "moderations"),
    ("assistant.conversation", "assistant"),
    ("assistants.create", "assistant"),
    ("agents.invoke", "agents"),
    ("knowledge.create", "knowledge"),
    ("fine_tuning.jobs.create", "fine_tuning"),
    ("web_search.web_search", "web_search"),
    ("tools.web_search", "tools"),
    ("web_reader.web_reader", "reader"),
    ("file_parser.create", "file_parser"),
    ("ocr.handwriting_ocr", "ocr"),
    ("layout_parsing.create", "ocr"),
    ("voice.clone", "voice"),
    ("voice.delete", "voice"),
    ("voice.list", "voice"),
)
_LANGCHAIN: dict[str, Endpoint] = {
    "ChatOpenAI": "chat",
    "ChatZhipuAI": "chat",
    "OpenAIEmbeddings": "embeddings",
    "ZhipuAIEmbeddings": "embeddings",
}
_CLIENTS = (
    *("OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"),
    *("ZhipuAI", "ZhipuAiClient", "ZaiClient"),
)
_OLD_OPENAI = ("ChatCompletion", "Completion", "Embedding", "api_base")
_OLD_ZHIPUAI = ("model_api", "api_key")


def check_python(source: bytes, target: Target, findings: FileFindings) -> None:
    """Add what is found in one file's source."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the file's own doings, such as "\\d"
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        findings.add(RULES["unreadable-file"], "not Python 3 as this Python reads it", line)
        return
    _Reader(tree, target, findings).read()


class _Reader:
    def __init__(self, tree: ast.Module, target: Target, findings: FileFindings) -> None:
        self._tree = tree
        self._target = target
        self._findings = findings
        self._literals = Literals(tree)
        self._imports = _imported(tree)
        self._docstrings = _docstrings(tree)

    def read(self) -> None:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call):
                self._call(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) not in self._docstrings:
                    check_address(node.value, node.lineno, self._findings)
                    check_environment(node.value, node.lineno, self._findings)
            elif isinstance(node, ast.Attribute):
                self._old_name(node)
            elif isinstance(node, ast.Assign) and _sets_a_key(node):
                check_key(self._literals.value(node.value), node.lineno, self._findings)

    def _call(self, node: ast.Call) -> None:
        name = dotted(node.func)
        last = name.rpartition(".")[2]
        endpoint = next((e for end, e in _METHODS if ("." + name).endswith("." + end)), None)
        if endpoint is not None and (endpoint in ("chat", "embeddings") or self._uses_an_sdk()):
            self._check(self._keywords(node, endpoint))
        elif last in _LANGCHAIN:
            self._check(self._langchain(node, _LANGCHAIN[last]))
        elif last in ("create", "acreate") and name.startswith("openai.ChatCompletion"):
            self._check(self._keywords(node, "chat"))
        elif last in ("chat", "stream_chat") and node.args and _is_tokenizer(node.args[0]):
            self._add("official-chat", f"{last}(tokenizer, ...)", node.lineno)
        elif last == "from_pretrained":
            self._from_pretrained(node)
        elif last in ("post", "request", "stream", "urlopen", "Request"):
            self._post(node)
        if last in _CLIENTS or last in _LANGCHAIN:
            self._client(last, node)

    def _check(self, call: Call) -> None:
        if isinstance(call.parameters.get("request_id"), str):
            self._add("request-id-repeated", "a constant request_id", call.line_of("request_id"))
        check_call(call, self._target, self._findings)

    def _keywords(self, node: ast.Call, endpoint: Endpoint) -> Call:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        is_whole = True
        for keyword in node.keywords:
            given = self._literals.value(keyword.value)
            if keyword.arg is None or keyword.arg in ("extra_body", "model_kwargs"):
                if isinstance(given, dict):
                    values |= given
                    lines |= dict.fromkeys(given, keyword.value.lineno)
                else:
                    is_whole = False
            else:
                values[keyword.arg] = given
                lines[keyword.arg] = keyword.value.lineno
        return Call(endpoint, values, node.lineno, lines, is_whole)

    def _langchain(self, node: ast.Call, endpoint: Endpoint) -> Call:
        call = self._keywords(node, endpoint)
        values = dict(call.parameters)
        if "model_name" in values:
            values.setdefault("model", values.pop("model_name"))
        # What the object is asked later may add parameters.
        return Call(endpoint, values, call.line, call.lines, is_whole=False)

    def _post(self, node: ast.Call) -> None:
        """requests, httpx, aiohttp: ``post(url, json={...})`` and data=json.dumps({...})."""
        keywords = {k.arg: k.value for k in node.keywords if k.arg}
        body = keywords.get("json")
        data = keywords.get("data") or keywords.get("content")
        if isinstance(data, ast.Call) and dotted(data.func).endswith("dumps") and data.args:
            body = data.args[0]
        body = self._literals.named(body)
        if not isinstance(body, ast.Dict):
            return
        values, lines, is_whole = self._literals.object(body)
        if {"prompt", "history"} <= values.keys():
            self._add("official-http", "a POST of prompt and history", node.lineno)
            return
        urls = [*node.args, *([keywords["url"]] if "url" in keywords else [])]
        texts = [u for u in (self._literals.value(url) for url in urls) if isinstance(u, str)]
        asked = [e for e in map(endpoint_of, texts) if e != "other"]
        endpoint: Endpoint | None = asked[0] if asked else None
        if endpoint is None:
            guessed = as_call(values, None)
            endpoint = guessed.endpoint if guessed is not None else None
        if endpoint is not None:
            self._check(Call(endpoint, values, node.lineno, lines, is_whole))

    def _from_pretrained(self, node: ast.Call) -> None:
        keywords = {k.arg: self._literals.value(k.value) for k in node.keywords if k.arg}
        if keywords.get("trust_remote_code") is not True:
            return
        name = self._literals.value(node.args[0]) if node.args else keywords.get(
            "pretrained_model_name_or_path", UNKNOWN
        )  # fmt: skip
        if isinstance(name, str) and "glm" not in name.lower() and find_release(name) is None:
            return
        self._add("remote-code", "trust_remote_code=True", node.lineno)

    def _client(self, name: str, node: ast.Call) -> None:
        keywords = {k.arg: k.value for k in node.keywords if k.arg}
        if (key := keywords.get("api_key")) is not None:
            check_key(self._literals.value(key), key.lineno, self._findings)
        bases = ("base_url", "openai_api_base", "zhipuai_api_base")
        base = next((keywords[n] for n in bases if n in keywords), None)
        if base is not None:
            check_address(self._literals.value(base), base.lineno, self._findings, is_base=True)
        elif not any(keyword.arg is None for keyword in node.keywords):
            check_client(name, node.lineno, self._findings)

    def _old_name(self, node: ast.Attribute) -> None:
        if not isinstance(node.value, ast.Name) or node.value.id not in self._imports:
            return
        name = f"{node.value.id}.{node.attr}"
        if node.value.id == "openai" and node.attr in _OLD_OPENAI:
            self._add("openai-old", name, node.lineno)
        elif node.value.id == "zhipuai" and node.attr in _OLD_ZHIPUAI:
            self._add("zhipuai-old", name, node.lineno)

    def _uses_an_sdk(self) -> bool:
        return any(sdk in self._imports for sdk in _SDKS)

    def _add(self, rule: str, detail: str, line: int | None) -> None:
        self._findings.add(RULES[rule], detail, line)


def _sets_a_key(node: ast.Assign) -> bool:
    return any(isinstance(t, ast.Attribute) and t.attr == "api_key" for t in node.targets)


def _is_tokenizer(node: ast.expr) -> bool:
    return "tokenizer" in dotted(node).lower()


def _imported(tree: ast.Module) -> set[str]:
    """The first parts of all imported modules, and the names they are bound to."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _docstrings(tree: ast.Module) -> set[int]:
    """The strings that stand as statements: prose, of which examples are no calls."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
