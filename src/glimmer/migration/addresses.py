"""Which side an address belongs to, and which endpoint a path asks."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

Side = Literal["local", "hosted", "coding", "misplaced", "retired", "openai", "anthropic"]
Endpoint = Literal[
    "chat",
    "completions",
    "responses",
    "messages",
    "embeddings",
    "tokenize",
    "images",
    "videos",
    "audio",
    "voice",
    "moderations",
    "assistant",
    "agents",
    "knowledge",
    "fine_tuning",
    "web_search",
    "tools",
    "reader",
    "file_parser",
    "ocr",
    "rerank",
    "other",
]

LOCAL_OPENAI = "http://127.0.0.1:8000/v1"
LOCAL_BIGMODEL = "http://127.0.0.1:8000/api/paas/v4"
LOCAL_ANTHROPIC = "http://127.0.0.1:8000"
HOSTED = "https://open.bigmodel.cn/api/paas/v4 (or https://api.z.ai/api/paas/v4)"
HOSTED_ANTHROPIC = "https://open.bigmodel.cn/api/anthropic (or https://api.z.ai/api/anthropic)"

URL = re.compile(r"https?://[^\s\"'`<>()\\,;|]+")

_HOSTED_HOSTS = ("open.bigmodel.cn", "api.z.ai", "bigmodel.cn")
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0", "::1")

# Most telling first: "/chat/completions" before "/completions", "/audio/..." before all else.
_PATHS: tuple[tuple[Endpoint, str], ...] = (
    ("audio", r"/audio/"),
    ("voice", r"/voice/"),
    ("images", r"/images/"),
    ("videos", r"/videos/"),
    ("moderations", r"/moderations$"),
    ("assistant", r"/assistants?(/|$)|/threads(/|$)"),
    ("agents", r"/agents(/|$)"),
    ("knowledge", r"/knowledge(/|$)|/document(/|$)"),
    ("fine_tuning", r"/fine_tuning/"),
    ("web_search", r"/web_search$"),
    ("tools", r"/tools$"),
    ("reader", r"/reader$"),
    ("file_parser", r"/files/(parser|ocr)(/|$)"),
    ("ocr", r"/layout_parsing$"),
    ("rerank", r"/rerank$"),
    ("chat", r"/chat/completions$"),
    ("completions", r"/completions$"),
    ("responses", r"/responses$"),
    ("embeddings", r"/embeddings$"),
    ("messages", r"/messages(/count_tokens)?$"),
    ("tokenize", r"/(de)?tokenize$"),
)


def endpoint_of(url: str) -> Endpoint:
    """The endpoint of a URL or of a path alone."""
    path = url.partition("?")[0].rstrip("/")
    if "://" in path:
        path = "/" + path.partition("://")[2].partition("/")[2]
    return next((name for name, pattern in _PATHS if re.search(pattern, path)), "other")


def side_of(url: str, *, is_base: bool = False) -> Side | None:
    """Whose address it is; None if neither side's, or not an API's.

    A local address without a path is an API's only where it is given as a base address: any
    program may run there.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
    except ValueError:  # "http://[": no address at all
        return None
    path = parts.path.rstrip("/")
    if host in _LOCAL_HOSTS:
        is_api = path.startswith(("/v1", "/api/paas", "/api/anthropic"))
        return "local" if is_base or is_api or endpoint_of(path) != "other" else None
    if host in _HOSTED_HOSTS:
        if path.startswith("/v1") or re.search(r"/paas/v4/v1(/|$)", path):
            return "misplaced"
        if path.startswith("/api/paas/v3"):
            return "retired"
        if path.startswith("/api/coding/"):
            return "coding"
        return "hosted" if path.startswith(("/api/paas", "/api/anthropic")) else None
    if host == "api.openai.com":
        return "openai"
    return "anthropic" if host == "api.anthropic.com" else None
