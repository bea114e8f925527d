"""TLS, and pages of other origins."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from glimmer.errors import InvalidParameterError
from tests.support.server import running

CHAT = {"model": "plain", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
ORIGIN = "https://console.example"


def test_tls(models: list[dict[str, Any]], tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(str(cert))
    certificate.private_key_pem.write_to_path(str(key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with running(models[2], tls_cert=cert, tls_key=key, verify=context) as server:
        assert server.url.startswith("https://127.0.0.1:")
        url = f"{server.url}/v1/chat/completions"
        assert httpx.post(url, json=CHAT, verify=context).status_code == 200
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.post(url, json=CHAT)


def test_a_broken_certificate_is_refused_by_name(
    models: list[dict[str, Any]], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing")
    with (
        pytest.raises(InvalidParameterError, match=r"broken.pem"),
        running(models[2], tls_cert=broken, tls_key=broken),
    ):
        pass


def test_pages_of_other_origins(models: list[dict[str, Any]]) -> None:
    asks = {"origin": ORIGIN, "access-control-request-method": "POST"}
    with running(models[2]) as server:
        url = f"{server.url}/v1/chat/completions"
        assert "access-control-allow-origin" not in httpx.options(url, headers=asks).headers
        answer = httpx.post(url, json=CHAT, headers={"origin": ORIGIN})
        assert "access-control-allow-origin" not in answer.headers
    with running(models[2], cors_origins=[ORIGIN]) as server:
        url = f"{server.url}/v1/chat/completions"
        assert httpx.options(url, headers=asks).headers["access-control-allow-origin"] == ORIGIN
        answer = httpx.post(url, json=CHAT, headers={"origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        other = httpx.options(url, headers={**asks, "origin": "https://evil.example"})
        assert other.headers.get("access-control-allow-origin") is None
