"""Who asks, what they may do, and what they have used."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from glimmer.errors import InvalidParameterError
from glimmer.server.config import ServerConfig
from glimmer.server.database import Database, DatabaseError
from glimmer.server.errors import ApiError
from glimmer.server.keys import ApiKey, Endpoint, open_key_store
from glimmer.server.ledger import Grouping, Ledger, UsageRecord, UsageRow
from glimmer.server.limits import Admission, RateLimiter
from glimmer.server.paths import default_master_key_path

_LOG = logging.getLogger("glimmer.server")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and where."""

    endpoint: str
    """The route, with its placeholders."""
    scope: Endpoint
    key: ApiKey | None = None
    """None where the server asks for none, and for the one key of its configuration."""
    headers: dict[str, str] = field(default_factory=dict)
    """To be sent with the answer."""

    @property
    def key_id(self) -> str | None:
        return None if self.key is None else self.key.id

    @property
    def project(self) -> str:
        return "" if self.key is None else self.key.project


class Access:
    """Keys, limits and ledger of one server.

    Raises:
        DatabaseError, MasterKeyError
    """

    def __init__(self, config: ServerConfig) -> None:
        self._auth = config.auth
        self._shared = None if config.api_key is None else config.api_key.get_secret_value()
        self._database = Database(config.database)
        file = config.master_key_file or default_master_key_path(self._database.path)
        self._keys = open_key_store(self._database, file)
        self.ledger = Ledger(self._database)
        self._limiter = RateLimiter()
        for key_id, today in self.ledger.today_by_key().items():
            self._limiter.seed(key_id, today.requests, today.tokens)

    def asks_for_keys(self) -> bool:
        """Raises ApiError where the keys cannot be read."""
        if self._auth == "auto":
            return self._shared is not None or self._keys.any_exist()
        return self._auth == "on"

    async def caller(
        self, credential: str, endpoint: str, scope: Endpoint, headers: dict[str, str]
    ) -> Caller:
        """Who shows this credential.

        Raises:
            ApiError: nobody, or somebody who may not ask for this.
        """
        if not await self._read(self.asks_for_keys):
            return Caller(endpoint, scope, headers=headers)
        if self._shared is not None and hmac.compare_digest(
            credential.encode(), self._shared.encode()
        ):
            return Caller(endpoint, scope, headers=headers)
        key = await self._read(lambda: self._keys.authenticate(credential))
        key.check(scope)
        return Caller(endpoint, scope, key, headers)

    async def owner(self, key_id: str | None) -> Caller:
        """Who left a batch here.

        Raises:
            ApiError: the key does not hold any more.
        """
        key = None if key_id is None else await self._read(lambda: self._keys.find(key_id))
        return Caller("", "batches", key)

    def admit(self, caller: Caller) -> Admission:
        """Count one request of a caller's.

        Raises:
            ApiError: a limit of its key is reached.
        """
        if caller.key is None:
            return Admission(lambda tokens: None)
        try:
            return self._limiter.admit(caller.key.id, caller.key.limits)
        finally:
            caller.headers.update(self._limiter.headers(caller.key.id, caller.key.limits))

    async def record(self, record: UsageRecord) -> None:
        """Returns when the record is on disk, so that a server which is killed then has it."""
        await asyncio.wrap_future(self.ledger.record(record))

    async def usage(
        self,
        caller: Caller,
        by: Collection[Grouping],
        since: datetime | None,
        until: datetime | None,
    ) -> tuple[UsageRow, ...]:
        """Totals of the caller's project; of all for a key of the scope "admin", and where no key
        is asked for.

        Raises:
            ApiError: no such grouping, or the ledger cannot be read.
        """
        project = caller.project
        is_free = caller.key is None or "admin" in caller.key.endpoints
        try:
            return await asyncio.to_thread(
                self.ledger.usage,
                by,
                since=since,
                until=until,
                project=None if is_free else project,
            )
        except InvalidParameterError as error:
            raise ApiError("invalid", str(error), param="by") from error
        except DatabaseError as error:  # it names a path: for the log
            _LOG.error("%s", error)
            raise ApiError("internal", "The ledger cannot be read.") from error

    def close(self) -> None:
        """Write what is left."""
        self.ledger.close()
        self._database.close()

    async def _read(self, read: Callable[[], T]) -> T:
        """Keys are in memory for two seconds; then they are read anew, beside the event loop."""
        return read() if self._keys.is_current() else await asyncio.to_thread(read)
