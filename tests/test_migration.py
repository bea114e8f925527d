"""Each difference is found where it is, and not where it is not."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from glimmer import catalogue
from glimmer.errors import UsageError
from glimmer.migration import RULES, Direction, Finding, Target
from glimmer.migration.addresses import endpoint_of, side_of
from glimmer.migration.code import check_python
from glimmer.migration.finding import FileFindings
from glimmer.migration.hosted import HOSTED_MODELS, find_model, hosted_for
from glimmer.migration.ledger import check_ledger
from glimmer.migration.requests import check_requests
from glimmer.server.database import Database, DatabaseError
from glimmer.server.ledger import Ledger, UsageRecord

HELLO = [{"role": "user", "content": "hello"}]
IMPORT = "import openai, zhipuai\nfrom openai import OpenAI\n"


def body(**parameters: Any) -> dict[str, Any]:
    return {"model": "glm-4.5-air", "messages": HELLO, **parameters}


def message(**keys: Any) -> dict[str, Any]:
    return body(messages=[{"role": "user", "content": "hello", **keys}])


def roles(*names: str) -> dict[str, Any]:
    return body(messages=[{"role": name, "content": "hello"} for name in names])


def embed(**parameters: Any) -> dict[str, Any]:
    return {"url": "/v1/embeddings", "body": {"model": "embedding-3", "input": "a", **parameters}}


def at(url: str) -> dict[str, Any]:
    return {"method": "POST", "url": url, "body": {"model": "glm-4.5-air"}}


# rule: a sample in which it is found, and one in which it is not. A dict is a recorded request, a
# list several, a string Python. The direction is the rule's own.
CASES: dict[str, tuple[Any, Any]] = {
    "temperature-range": (body(temperature=1.5), body(temperature=0.7)),
    "top-p-range": (body(top_p=0), body(top_p=0.9)),
    "sdk-clamp": (body(temperature=0), body(temperature=0.5, top_p=0.5)),
    "sampling-decimals": (body(top_p=0.333), body(top_p=0.33, temperature=1)),
    "stop-words": (body(stop=["a", "b"]), body(stop=["a"])),
    "stop-string": (body(stop="a"), body(stop=["a"])),
    "penalties": (body(repetition_penalty=1.1), body(presence_penalty=0)),
    "local-sampling": (body(top_k=20), body(top_k=0, logit_bias=None)),
    "seed": (body(seed=0), body(seed=None)),
    "logprobs": (body(logprobs=True), body(logprobs=False)),
    "several-answers": (body(n=2), body(n=1)),
    "max-tokens": (body(max_tokens=100_000), body(max_tokens=98_304)),
    "short-answer": (
        body(max_tokens=200),
        body(max_tokens=200, thinking={"type": "disabled"}),
    ),
    "max-completion-tokens": (body(max_completion_tokens=2000), body(max_tokens=2000)),
    "max-length": (body(max_length=8192), body(max_tokens=8192)),
    "tool-choice": (body(tool_choice="required"), body(tool_choice="auto")),
    "json-schema": (
        body(response_format={"type": "json_schema", "json_schema": {}}),
        body(response_format={"type": "json_object"}),
    ),
    "constraints": (body(regex="[a-z]+"), body(regex=None)),
    "reasoning": (body(chat_template_kwargs={"enable_thinking": False}), body()),
    "reasoning-effort": (body(reasoning_effort="high"), body()),
    "thinking-type": (
        body(thinking={"type": "enabled", "budget_tokens": 1024}),
        body(thinking={"type": "enabled", "clear_thinking": True}),
    ),
    "request-id-length": (body(request_id="a"), body(request_id="a" * 36)),
    "user-id-length": (body(user_id="u"), body(user_id="user-1")),
    "user": (body(user="u"), body(user_id="user-1")),
    "stream-options": (body(stream_options={"include_usage": True}), body(stream=True)),
    "openai-extras": (body(parallel_tool_calls=False), body(tools=[])),
    "hosted-extras": (body(sensitive_word_check={"status": "ENABLE"}), body()),
    "platform-parameters": (body(do_sample=False), body(stream=True)),
    "functions": (body(functions=[]), body(tools=[])),
    "roles": (roles("developer", "user"), roles("system", "user", "assistant", "tool")),
    "nobody-asks": (roles("system"), roles("system", "user")),
    "late-system": (roles("user", "system", "user"), roles("system", "user")),
    "prefill": (roles("user", "assistant"), roles("user", "assistant", "user")),
    "message-keys": (message(name="Ann"), message()),
    "text-parts": (message(content=[{"type": "text", "text": "a"}]), message(content="a")),
    "media-hosted": (
        message(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        {**message(content=[{"type": "image_url"}]), "model": "glm-4.6v"},
    ),
    "media-local": (
        message(content=[{"type": "text", "text": "a"}, {"type": "video_url"}]),
        message(content=[{"type": "text", "text": "a"}]),
    ),
    "platform-tools": (
        body(tools=[{"type": "web_search", "web_search": {}}]),
        body(tools=[{"type": "function", "function": {"name": "f"}}]),
    ),
    "tool-count": (body(tools=[{"type": "function"}] * 129), body(tools=[{"type": "function"}])),
    "strict-tools": (
        body(tools=[{"type": "function", "function": {"name": "f", "strict": True}}]),
        body(tools=[{"type": "function", "function": {"name": "f", "strict": False}}]),
    ),
    "context-length": (message(content="字" * 200_000), message(content="字" * 1000)),
    "model-hosted": (body(model="chatglm3-6b"), body(model="GLM-4.7")),
    "model-unlisted": (body(model="glm-4-plus"), body(model="glm-4.7")),
    "model-local": (body(model="glm-4.7"), body(model="THUDM/chatglm3-6b")),
    "embedding-model-hosted": (embed(model="chatglm3-6b"), embed()),
    "embedding-model-local": (embed(), embed(model="chatglm3-6b")),
    "embedding-dimensions": (embed(dimensions=100), embed(dimensions=512)),
    "embedding-batch": (embed(input=["a"] * 65), embed(input=["a"] * 64)),
    "endpoint-hosted": (at("/v1/completions"), at("/v1/chat/completions")),
    "endpoint-local": (at("/api/paas/v4/images/generations"), at("/api/paas/v4/embeddings")),
    "address-local": ('a = "http://localhost:8000/v1"', 'a = "http://localhost:3000/shop"'),
    "address-hosted": (
        'a = "https://api.z.ai/api/paas/v4/"',
        'a = "https://open.bigmodel.cn/pricing"',
    ),
    "address-vendor": ('a = "https://api.openai.com/v1"', 'a = "https://openai.com"'),
    "address-misplaced": (
        'a = "https://open.bigmodel.cn/api/paas/v4/v1"',
        'a = "https://open.bigmodel.cn/api/paas/v4"',
    ),
    "address-retired": (
        'a = "https://open.bigmodel.cn/api/paas/v3/model-api/chatglm_pro/invoke"',
        'a = "https://open.bigmodel.cn/api/paas/v4"',
    ),
    "address-coding": (
        'a = "https://api.z.ai/api/coding/paas/v4"',
        'a = "https://api.z.ai/api/paas/v4"',
    ),
    "address-default": ("OpenAI()", 'OpenAI(base_url="https://api.z.ai/api/paas/v4")'),
    "environment": ('os.environ["OPENAI_BASE_URL"]', 'os.environ["ZAI_BASE_URL"]'),
    "key-in-code": (
        'OpenAI(api_key="0123456789abcdef.secret", base_url="x")',
        'OpenAI(api_key=os.environ["KEY"], base_url="x")',
    ),
    "key-placeholder": ('OpenAI(api_key="EMPTY")', 'OpenAI(api_key=key)'),
    "official-chat": ("model.chat(tokenizer, 'hi', history=[])", "model.chat('hi')"),
    "remote-code": (
        "AutoModel.from_pretrained('THUDM/chatglm3-6b', trust_remote_code=True)",
        "AutoModel.from_pretrained('gpt2', trust_remote_code=True)",
    ),
    "official-http": (
        "requests.post(url, json={'prompt': 'hi', 'history': []})",
        "requests.post(url, json={'prompt': 'hi'})",
    ),
    "openai-old": ("openai.ChatCompletion.create()", "openai.chat.completions.create()"),
    "zhipuai-old": ("zhipuai.model_api.invoke(model='m')", "zhipuai.ZhipuAI(base_url='x')"),
    "request-id-repeated": (
        [body(request_id="abcdef"), body(request_id="abcdef")],
        [body(request_id="abcdef"), body(request_id="abcdeg")],
    ),
    "concurrency": (None, None),  # of the ledger
    "unreadable-line": ([body(), 1], [body()]),
    "unreadable-file": ("def", "def f(): pass"),
}  # fmt: skip


def check(sample: Any, direction: Direction = "hosted", model: str | None = None) -> list[Finding]:
    target = Target(direction, model)
    findings = FileFindings("file", direction, by_line=isinstance(sample, str))
    if isinstance(sample, str):
        check_python((IMPORT + sample).encode(), target, findings)
    else:
        lines = sample if isinstance(sample, list) else [sample]
        check_requests(io.BytesIO("\n".join(map(json.dumps, lines)).encode()), target, findings)
    return findings.sorted()


def ids(findings: list[Finding]) -> set[str]:
    return {finding.rule for finding in findings}


@pytest.mark.parametrize("rule", [rule for rule in RULES if CASES[rule][0] is not None])
def test_each_rule(rule: str) -> None:
    direction: Direction = "local" if RULES[rule].to == "local" else "hosted"
    positive, negative = CASES[rule]
    (found, *_) = [f for f in check(positive, direction) if f.rule == rule]
    assert found.severity == RULES[rule].severity
    assert found.fix
    assert found.line
    assert rule not in ids(check(negative, direction))
    assert rule in ids(check(positive, "local" if direction == "hosted" else "hosted")) or (
        RULES[rule].to != "both"
    )


def test_a_plain_request_needs_no_change() -> None:
    request = body(messages=[{"role": "system", "content": "a"}, *HELLO], temperature=0.5)
    assert check(request, "hosted") == check(request, "local") == []


def test_rules_say_all_that_they_must() -> None:
    for rule in RULES.values():
        assert rule.why.strip().endswith("."), rule.id
        assert rule.fix.strip().endswith("."), rule.id
        assert rule.detects
        assert ("from memory" in rule.why) == (rule.source == "memory")


def test_models_are_told_apart() -> None:
    releases = catalogue.releases()
    for model in HOSTED_MODELS:
        assert model.local is None or model.local in releases
    for name in releases:
        nearest = hosted_for(name)
        assert nearest is None or find_model(nearest) is not None
        assert (nearest is None) == ("base" in name or name in ("glm-4-9b", "glm-4-9b-hf"))
    assert "glm-4-9b-0414" in check(body(model="glm-4-flash-250414"), "local")[0].fix
    (found,) = check(body(model="chatglm3-6b-base"))
    assert "base model" in found.fix
    assert (
        ids(check(body(model="glm-9"))) == ids(check(body(model="cogview-9"))) == {"model-unlisted"}
    )
    assert check({**body(model="claude-x"), "system": "a"}) == []


def test_the_model_that_will_answer_sets_the_limits() -> None:
    long = message(content="word " * 30_000)
    assert "context-length" in ids(check(long, "local", "chatglm3-6b"))
    assert "context-length" not in ids(check(long, "local", "glm-4-9b-chat-1m"))
    assert "context-length" in ids(check(body(max_tokens=8000), "local", "chatglm-6b"))
    assert "max-tokens" in ids(check(body(max_tokens=20_000), model="glm-4-32b-0414-128k"))
    for direction, model in (("hosted", "chatglm3-6b"), ("local", "glm-4.7")):
        with pytest.raises(UsageError, match="no"):
            Target(direction, model)  # type: ignore[arg-type]
    assert Target("hosted", "glm-9").limits("chatglm3-6b") is None


PROGRAM = '''
"""Prose may name http://localhost:8000/v1."""
import os, httpx
from openai import OpenAI

URL = "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=os.getenv("BASE", URL), api_key="sk-0123456789")
options = dict(temperature=1.5, stop=["a", "b"])

def ask(text, temperature):
    return client.chat.completions.create(
        model="chatglm3-6b",
        messages=[{"role": "developer", "content": text}, *history],
        extra_body={"min_p": 0.1},
        n=temperature,
        **options,
    )

httpx.post(f"{URL}/completions", json={"model": "glm-4-9b-chat", "prompt": "x"})
httpx.post(URL, data=json.dumps({"model": "m", "messages": messages, "logprobs": True}))
ChatOpenAI(model_name="gpt-4", base_url=URL)
client.images.generate(prompt="x")
'''


def test_python_is_read_as_far_as_it_can_be_known() -> None:
    found = {(f.rule, f.line) for f in check(PROGRAM)}
    shift = IMPORT.count("\n")
    assert found >= {
        ("address-local", 6 + shift),
        ("key-in-code", 7 + shift),
        ("model-hosted", 12 + shift),
        ("local-sampling", 14 + shift),
        ("temperature-range", 16 + shift),
        ("stop-words", 16 + shift),
        ("endpoint-hosted", 19 + shift),
        ("logprobs", 20 + shift),
        ("model-hosted", 21 + shift),
    }
    # What is computed is not guessed at.
    assert not {f.rule for f in check(PROGRAM)} & {"several-answers", "roles", "address-default"}
    assert ("endpoint-local", 22 + shift) in {(f.rule, f.line) for f in check(PROGRAM, "local")}


def test_keys_and_texts_are_not_shown() -> None:
    secret = "0123456789abcdef.secret"
    source = f'OpenAI(api_key="{secret}", base_url="http://me:{secret}@localhost:1/v1?k={secret}")'
    request = body(
        messages=[{"role": "user", "content": secret}], user_id=secret, stop=[secret] * 2
    )
    findings = check(source) + check(request) + check(request, "local")
    assert {"key-in-code", "address-local", "stop-words"} <= ids(findings)
    assert secret not in repr(findings)


def test_a_key_that_is_assigned() -> None:
    assert ids(check('openai.api_key = "sk-0123456789"')) == {"key-in-code"}
    assert check('openai.api_key = os.environ["KEY"]') == []


def test_clients_without_an_address() -> None:
    assert "ZAI_BASE_URL" in check("ZaiClient()", "local")[0].fix
    assert "ZHIPUAI_BASE_URL" in check("ZhipuAI()", "local")[0].fix
    assert check("ZaiClient()") == []
    assert "/api/anthropic" in check("Anthropic()")[0].fix
    assert check("OpenAI(**options)") == []


@pytest.mark.parametrize(
    ("url", "endpoint", "side"),
    [
        ("https://open.bigmodel.cn/api/paas/v4/async/chat/completions", "chat", "hosted"),
        ("https://api.z.ai/api/anthropic/v1/messages", "messages", "hosted"),
        ("http://[::1]:8000/v1/messages/count_tokens?a=1", "messages", "local"),
        ("http://localhost:8000/detokenize", "tokenize", "local"),
        ("http://0.0.0.0/api/paas/v4/audio/speech/", "audio", "local"),
        ("http://localhost:8000", "other", None),
        ("http://[", "other", None),
        ("https://api.openai.com/v1/responses", "responses", "openai"),
        ("https://example.com/v1/completions", "completions", None),
    ],
)
def test_addresses(url: str, endpoint: str, side: str | None) -> None:
    assert endpoint_of(url) == endpoint
    assert side_of(url) == side


NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def asked(
    model: str,
    endpoint: str = "/v1/chat/completions",
    *,
    tokens: int = 10,
    status: int = 200,
    start_s: float = 0,
) -> UsageRecord:
    return UsageRecord(
        time=NOON + timedelta(seconds=start_s),
        key_id=None,
        project="p",
        model=model,
        endpoint=endpoint,
        prompt_tokens=tokens,
        cached_tokens=0,
        completion_tokens=10,
        latency_s=2.0,
        time_to_first_token_s=1.0,
        status=status,
    )


def test_the_ledger(tmp_path: Path) -> None:
    file = str(tmp_path / "server.db")
    with Database(file) as database, Ledger(database) as ledger:
        for record in (
            asked("glm-4-9b-chat"),
            asked("glm-4-9b-chat", start_s=1),
            asked("glm-4-9b-chat", start_s=1.5, tokens=500_000),
            asked("glm-4-9b-chat", start_s=1.6, status=429),
            asked("glm-4.5-air", "/api/paas/v4/chat/completions", start_s=3),
            asked("glm-4.5-air", "/v1/completions", start_s=100),
            asked("glm-4.5-air", "/v1/embeddings", start_s=200),
            asked("", "/v1/models", start_s=300),
        ):
            assert ledger.record(record).result()
    findings = {f.rule: f for f in check_ledger(file, Target("hosted"))}
    assert set(findings) == {
        "model-hosted",
        "endpoint-hosted",
        "embedding-model-hosted",
        "context-length",
        "concurrency",
    }
    assert findings["model-hosted"].count == 3
    assert "500010 tokens" in findings["context-length"].detail
    assert findings["concurrency"].detail == "3 requests at once"
    long = {f.rule for f in check_ledger(file, Target("hosted", "glm-5.2"))}
    assert "context-length" not in long
    with pytest.raises(UsageError, match="hosted platform alone"):
        check_ledger(file, Target("local"))
    with pytest.raises(DatabaseError, match="no ledger"):
        check_ledger(str(tmp_path / "none.db"), Target("hosted"))
