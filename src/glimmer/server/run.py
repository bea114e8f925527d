"""Runs the server until it is asked to stop."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from types import FrameType

import uvicorn

from glimmer.catalogue import find_file
from glimmer.errors import InvalidParameterError
from glimmer.server import logs
from glimmer.server.app import create_app
from glimmer.server.config import ServerConfig
from glimmer.server.engines import check
from glimmer.server.service import Service

_LOG = logging.getLogger("glimmer.server")
_MAX_CONNECTIONS = 4096
"""Beyond that, connections are turned away with 503: each takes memory even if it says nothing."""


def serve(config: ServerConfig, announce: Callable[[str, bool], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then let what runs finish for ``drain_s``.

    ``announce`` is called with the server's URL, and whether it asks for keys, when it listens;
    where the log is JSON, a line of it tells the URL instead.

    Raises:
        InvalidParameterError: the address may not or cannot be used.
        GlimmerError: the first model cannot be loaded.
    """
    logs.configure(config.log_format, config.log_level)
    server = Server(config)
    if config.log_format == "json":
        _LOG.info("Glimmer listens at %s", server.url)
    else:
        announce(server.url, server.service.access.asks_for_keys())
    server.run()
    if server.service.failure is not None:
        raise server.service.failure


def check_exposure(config: ServerConfig, asks_for_keys: bool) -> None:
    """Raises InvalidParameterError where anybody on the network could use the server."""
    if config.is_loopback or config.open_to_network or asks_for_keys:
        return
    raise InvalidParameterError(
        f"Anybody who reaches {config.host} could use this server, for it asks for no key. Make "
        "one with `glimmer keys create --project NAME`, or say --open-to-network if that is meant."
    )


def _check_certificate(config: ServerConfig) -> None:
    if config.tls_cert is None or config.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_cert, config.tls_key)
    except (ssl.SSLError, OSError) as error:
        raise InvalidParameterError(
            f"{config.tls_cert} and {config.tls_key} are no certificate with its key: "
            f"{getattr(error, 'reason', None) or error}."
        ) from error


def _listen(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InvalidParameterError(
            f"{config.host} port {config.port} cannot be used: {error.strerror or error}. "
            "Choose another with --host and --port."
        ) from error
    return listener


class Server(uvicorn.Server):
    """Listens as soon as it is made.

    Raises:
        InvalidParameterError: the address may not or cannot be used.
        ModelNotFoundError: one of the models is not there.
        GlimmerError: the engine of one cannot run it.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.service = Service(config)
        try:
            for model in config.models:
                find_file(model.source)  # a slip of the pen is told before anything is loaded
                check(model)
            check_exposure(config, self.service.access.asks_for_keys())
            _check_certificate(config)
            self._listener = _listen(config)
        except BaseException:
            self.service.access.close()
            raise
        scheme = "https" if config.tls_cert is not None else "http"
        host, port = self._listener.getsockname()[:2]
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        super().__init__(
            uvicorn.Config(
                create_app(self.service),
                log_config=None,
                access_log=False,
                server_header=False,
                ssl_certfile=config.tls_cert,
                ssl_keyfile=config.tls_key,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=round(config.drain_s),
                limit_concurrency=_MAX_CONNECTIONS,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets or [self._listener])
        finally:
            self._listener.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            _LOG.info("stopping; what runs may finish")
        self.service.is_draining = True
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self.service.failure is not None:
            self.should_exit = True
        return await super().on_tick(counter)
