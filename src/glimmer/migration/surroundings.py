"""Addresses, environment variables, keys and clients: what decides where a request goes."""

from __future__ import annotations

from typing import Any

from glimmer.migration.addresses import (
    HOSTED,
    HOSTED_ANTHROPIC,
    LOCAL_ANTHROPIC,
    LOCAL_BIGMODEL,
    LOCAL_OPENAI,
    URL,
    side_of,
)
from glimmer.migration.finding import FileFindings
from glimmer.migration.rules import RULES

# name: what to give it for the hosted platform, and for this machine. None: nothing to change.
ENVIRONMENT: dict[str, tuple[str | None, str | None]] = {
    "ZAI_BASE_URL": (None, LOCAL_BIGMODEL),
    "ZHIPUAI_BASE_URL": (None, LOCAL_BIGMODEL),
    "ZAI_API_KEY": (None, "a key of this server (glimmer keys create)"),
    "ZHIPUAI_API_KEY": (None, "a key of this server (glimmer keys create)"),
    "OPENAI_BASE_URL": (HOSTED, LOCAL_OPENAI),
    "OPENAI_API_BASE": (HOSTED, LOCAL_OPENAI),
    "OPENAI_API_KEY": ("a key of the platform", "a key of this server (glimmer keys create)"),
    "ANTHROPIC_BASE_URL": (HOSTED_ANTHROPIC, LOCAL_ANTHROPIC),
    "ANTHROPIC_API_KEY": ("a key of the platform", "a key of this server (glimmer keys create)"),
    "ANTHROPIC_AUTH_TOKEN": ("a key of the platform", "a key of this server (glimmer keys create)"),
}
_RULES = {
    "local": "address-local",
    "hosted": "address-hosted",
    "coding": "address-coding",
    "misplaced": "address-misplaced",
    "retired": "address-retired",
    "openai": "address-vendor",
    "anthropic": "address-vendor",
}
_PLACEHOLDERS = ("", "empty", "none", "null", "x", "xxx", "na", "not-needed", "dummy", "local")


def check_address(
    text: Any, line: int | None, findings: FileFindings, *, is_base: bool = False
) -> None:
    """Every address in ``text`` that belongs to the side which the program leaves, or to nobody."""
    if not isinstance(text, str):
        return
    for url in URL.findall(text):
        side = side_of(url, is_base=is_base)
        if side is None or (is_base and side_of(url) is not None):
            continue  # those that show it by themselves are found wherever they stand
        rule = _RULES[side]
        if side == "coding" and findings.direction == "local":
            rule = "address-hosted"
        fix = None
        if url.rstrip("/").endswith("/anthropic") or side == "anthropic":
            to_hosted = findings.direction == "hosted"
            fix = f"Write {HOSTED_ANTHROPIC if to_hosted else LOCAL_ANTHROPIC}."
        # An address may carry a name and a password.
        findings.add(RULES[rule], f"the address {_without_login(url)}", line, fix)


def check_environment(text: str, line: int | None, findings: FileFindings) -> None:
    """A variable's name, standing alone."""
    if text in ENVIRONMENT:
        value = ENVIRONMENT[text][0 if findings.direction == "hosted" else 1]
        if value is not None:
            findings.add(RULES["environment"], f"reads {text}", line, f"Set it to {value}.")


def check_key(value: Any, line: int | None, findings: FileFindings) -> None:
    """A key that is written into the code; it is never shown."""
    if not isinstance(value, str):
        return
    if value.lower() in _PLACEHOLDERS:
        findings.add(RULES["key-placeholder"], "a placeholder as api_key", line)
    elif "{}" not in value and "<" not in value and not value.lower().startswith("your"):
        findings.add(RULES["key-in-code"], "api_key is a constant", line)


def check_client(name: str, line: int | None, findings: FileFindings) -> None:
    """A client that was made without an address."""
    is_platforms = name.startswith(("Zhipu", "Zai", "ChatZhipu"))
    if is_platforms and findings.direction == "hosted":
        return
    if is_platforms:
        variable = "ZHIPUAI_BASE_URL" if name == "ZhipuAI" else "ZAI_BASE_URL"
        fix = f'Give base_url="{LOCAL_BIGMODEL}", or set {variable} to it.'
        if name.endswith("Embeddings") or name.startswith("Chat"):
            fix = "Give it the address of this server's /api/paas/v4."
    elif "Anthropic" in name:
        address = HOSTED_ANTHROPIC if findings.direction == "hosted" else LOCAL_ANTHROPIC
        fix = f"Give base_url, or set ANTHROPIC_BASE_URL: {address}."
    else:
        address = HOSTED if findings.direction == "hosted" else LOCAL_OPENAI
        fix = f"Give base_url, or set OPENAI_BASE_URL: {address}."
    findings.add(RULES["address-default"], f"{name}() without a base URL", line, fix)


def _without_login(url: str) -> str:
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
