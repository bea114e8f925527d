"""One running vLLM server: whether it lives, what it serves, what it has to do."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from glimmer.errors import InvalidParameterError

_LOG = logging.getLogger("glimmer.server")
_MAX_MISSES = 3
"""Health checks without an answer in time: a busy server may miss some. One that refuses
connections is down at once."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model of the server's."""

    name: str
    max_model_len: int | None


class Backend:
    """A server's address and state. Used in one event loop."""

    def __init__(self, url: str, key: str | None = None, socket: Path | None = None) -> None:
        """``url`` is the server's root, with or without /v1; a server of this machine may listen at
        a ``socket`` in its files, and its URL then is a mere name.

        Raises:
            InvalidParameterError: no address of a server.
        """
        self.url = check_url(url)
        self.key = key
        self.socket = socket
        self.name = self.url.partition("://")[2]
        """What logs and metrics call it."""
        self.served: Served | None = None
        """The model, while it is up."""
        self.num_running = 0
        self.last_used = 0
        self.problem = "it has not been asked yet"
        """Why it is down."""
        self._misses = 0
        self._gone: asyncio.Event = asyncio.Event()
        """Set when those who wait for it need not wait any more."""

    @property
    def is_up(self) -> bool:
        return self.served is not None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    async def wait_gone(self) -> None:
        await self._gone.wait()

    def avoid(self, problem: str) -> None:
        """A request could not be made there: no other one is, until it is found well. Those under
        way go on, for nothing is known of them."""
        if self.served is not None:
            _LOG.error("the engine %s is down: %s", self.name, problem)
        self.served, self.problem = None, problem

    def lose(self, problem: str) -> None:
        """It is not well: who waits for it need not wait any more."""
        self.avoid(problem)
        self._gone.set()
        self._gone = asyncio.Event()

    async def check(self, client: httpx.AsyncClient, wanted: str, timeout_s: float) -> None:
        """Ask how it is; with an answer it is up, or back again."""
        try:
            # vLLM asks for no key here, but something before it may.
            health = await client.get(f"{self.url}/health", headers=self.headers, timeout=timeout_s)
        except httpx.TimeoutException:
            self._misses += 1
            problem = f"it has not answered in {timeout_s:g} s"
            if self._misses >= _MAX_MISSES:
                self.lose(problem)
            elif self.served is None:
                self.problem = problem
            return
        except httpx.HTTPError as error:
            self.lose(f"{error or type(error).__name__}")
            return
        self._misses = 0
        if health.status_code != 200:
            self.lose(f"it says of its health: {health.status_code}")
        elif self.served is None:
            await self._find_model(client, wanted, timeout_s)

    async def _find_model(self, client: httpx.AsyncClient, wanted: str, timeout_s: float) -> None:
        try:
            answer = await client.get(
                f"{self.url}/v1/models", headers=self.headers, timeout=timeout_s
            )
            if answer.status_code != 200:
                self.problem = f"/v1/models is refused ({answer.status_code})"
                if answer.status_code in (401, 403):
                    self.problem += ": its API key is missing or wrong"
                return
            served = _choose(answer.json(), wanted)
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
            self.problem = f"/v1/models cannot be read: {error or type(error).__name__}"
            return
        if isinstance(served, str):
            self.problem = served
            return
        self.served = served
        _LOG.info("the engine %s is up and serves %s", self.name, served.name)


def check_url(url: str) -> str:
    """The root of a server.

    Raises:
        InvalidParameterError: no address of a server.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.port != 0
        host = (parts.hostname or "").encode("idna")  # as it will be looked up
    except ValueError:
        is_address, host = False, b""
    if not is_address or not host or not url.isprintable() or " " in url:
        raise InvalidParameterError(
            f"A backend is an address such as http://10.0.0.7:8000, but it is {url!r:.200}."
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidParameterError(
            f"The address of the backend {parts.hostname} has more than host, port and path. Its "
            "API key is taken from the environment (GLIMMER_BACKEND_API_KEY)."
        )
    return url.rstrip("/").removesuffix("/v1")


def _choose(told: Any, wanted: str) -> Served | str:
    """The model of that name, or the only one; else what is wrong."""
    models = {str(card["id"]): card.get("max_model_len") for card in told["data"]}
    name = wanted if wanted in models else next(iter(models), "")
    if wanted not in models and len(models) != 1:
        return f"it serves {', '.join(models) or 'nothing'}, and none is called {wanted}"
    length = models[name]
    return Served(name, int(length) if length is not None else None)
