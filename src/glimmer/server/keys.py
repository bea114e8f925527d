"""API keys: who may ask, for what, how much and until when. Knows no HTTP.

A key is shown as `id.secret`. The secret is computed from the id under the server's master key, so
that none is stored, and yet a token that the hosted platform's SDK has signed with it can be
checked. Whoever has the master key has every key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, insert, select, update

from glimmer.errors import InvalidParameterError
from glimmer.server.database import KEYS, SETTINGS, Database, DatabaseError, from_ms, to_ms
from glimmer.server.errors import ApiError
from glimmer.server.key_token import Token
from glimmer.server.limits import Limits
from glimmer.server.master_key import MASTER_KEY_VARIABLE, MasterKeyError, load_master_key

Endpoint = Literal[
    "chat",  # chat completions and messages in every dialect, answers fetched later, token counts
    "completions",
    "responses",
    "embeddings",
    "models",
    "tokenize",  # and detokenize
    "files",
    "batches",
    "usage",  # of the key's own project
    "admin",  # usage of all projects; only for keys that name it
]
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)

CACHE_S = 2.0
"""A key that another process revokes is refused after this time at the latest."""
_KEY_TEXT = re.compile(r"([0-9a-f]{32})\.([0-9A-Za-z]{32})")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_LENGTH = 32  # 190 bits; a JWT library warns of HS256 keys below 32 bytes
_MAX_NAME_LENGTH = 200
_FINGERPRINT = "master_key_fingerprint"
_UNKNOWN = "This API key is not known here."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is stored of a key. Times are aware and in UTC."""

    id: str
    project: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    models: tuple[str, ...]
    """Empty: all."""
    endpoints: tuple[Endpoint, ...]
    """Empty: all but "admin"."""
    limits: Limits

    def check(self, endpoint: Endpoint, model: str | None = None) -> None:
        """Make sure that the key's scope allows this.

        Raises:
            ApiError: of kind "permission".
        """
        allowed = self.endpoints or tuple(name for name in ENDPOINTS if name != "admin")
        sees_all = endpoint == "usage" and "admin" in allowed
        if endpoint not in allowed and not sees_all:
            raise ApiError("permission", f"This key may not use the endpoint {endpoint!r}.")
        if model is not None and not self.allows_model(model):
            raise ApiError("permission", "This key may not use this model.", param="model")

    def allows_model(self, model: str) -> bool:
        return not self.models or model in self.models


class KeyStore:
    """The keys in a database, under one master key. Safe to use from several threads.

    ``clock`` gives seconds since 1970; ``monotonic`` times the cache.

    Raises:
        MasterKeyError: the keys there were made under another master key.
        DatabaseError: the database fails.
    """

    def __init__(
        self,
        database: Database,
        master_key: bytes,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._master_key = master_key
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._cached: dict[str, ApiKey] | None = None
        self._cached_at = 0.0
        self._failed_at = -math.inf
        with database.read() as connection:
            self._check_fingerprint(connection)

    def create(
        self,
        project: str,
        *,
        name: str = "",
        models: Iterable[str] = (),
        endpoints: Iterable[str] = (),
        expires_at: datetime | None = None,
        limits: Limits | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key; the text "id.secret" is returned this once.

        Raises:
            InvalidParameterError: a project, name or model that is empty, longer than 200
                characters or not printable; an unknown endpoint; an expiry that is not ahead.
            MasterKeyError, DatabaseError: as for the store.
        """
        now = self._now()
        if expires_at is not None and expires_at <= now:
            raise InvalidParameterError(
                f"A key must expire in the future, but {expires_at.isoformat()} is past."
            )
        key = ApiKey(
            id=secrets.token_hex(16),
            project=_checked("project", project),
            name=_checked("name", name) if name else "",
            created_at=now,
            expires_at=None if expires_at is None else from_ms(to_ms(expires_at)),
            revoked_at=None,
            models=tuple(dict.fromkeys(_checked("model", model) for model in models)),
            endpoints=_checked_endpoints(endpoints),
            limits=Limits() if limits is None else limits,
        )
        with self._database.write() as connection:
            if not self._check_fingerprint(connection):
                row = {"name": _FINGERPRINT, "value": self._fingerprint()}
                connection.execute(self._database.insert_new(SETTINGS), row)
                self._check_fingerprint(connection)  # another process may have been faster
            connection.execute(insert(KEYS), _to_row(key))
        self._forget()
        return key, f"{key.id}.{self._secret(key.id)}"

    def list(self, project: str | None = None) -> tuple[ApiKey, ...]:
        """All keys, or a project's, oldest first; expired and revoked ones too.

        Raises:
            DatabaseError: the database fails.
        """
        query = select(KEYS).order_by(KEYS.c.created_ms, KEYS.c.id)
        if project is not None:
            query = query.where(KEYS.c.project == project)
        with self._database.read() as connection:
            return tuple(_from_row(row) for row in connection.execute(query))

    def revoke(self, key_id: str) -> ApiKey:
        """Refuse this key from now on; one that is revoked already stays as it is.

        Raises:
            InvalidParameterError: there is no such key.
            DatabaseError: the database fails.
        """
        this = KEYS.c.id == key_id
        with self._database.write() as connection:
            connection.execute(
                update(KEYS)
                .where(this, KEYS.c.revoked_ms.is_(None))
                .values(revoked_ms=to_ms(self._now()))
            )
            row = connection.execute(select(KEYS).where(this)).one_or_none()
        if row is None:
            # A whole key may have been given: its secret is not repeated.
            raise InvalidParameterError(
                f"There is no key {key_id.partition('.')[0]!r}. `glimmer keys list` shows the ids."
            )
        self._forget()
        return _from_row(row)

    def is_current(self) -> bool:
        """Whether ``authenticate`` and ``any_exist`` would answer without the database."""
        return self._cached is not None and self._monotonic() - self._cached_at < CACHE_S

    def any_exist(self) -> bool:
        """Whether a key was ever made, revoked ones included: then each request needs one.

        Raises:
            ApiError: as ``authenticate``, of kind "internal".
        """
        return bool(self._keys())

    def authenticate(self, credential: str) -> ApiKey:
        """The key that a client shows, as "id.secret" or as a token signed with the secret.

        Raises:
            ApiError: of kind "no_key", "bad_key", "wrong_secret" or "expired_key"; "internal" when
                the keys cannot be read, since one of them may have been revoked.
        """
        credential = credential.strip()
        if not credential:
            raise ApiError("no_key", "This server needs an API key; the request has none.")
        keys = self._keys()
        # The secret of an unknown id is computed and compared too: it must take as long.
        token = None
        if match := _KEY_TEXT.fullmatch(credential):
            key_id, secret = match.groups()
            is_genuine = hmac.compare_digest(secret, self._secret(key_id))
        else:
            token = Token(credential)
            key_id = token.key_id
            is_genuine = token.is_signed_with(self._secret(key_id))
        key = keys.get(key_id)
        if key is None:
            raise ApiError("bad_key", _UNKNOWN)
        if not is_genuine:
            raise ApiError("wrong_secret", _UNKNOWN)
        self._check_holds(key)
        if token is not None:
            token.check_times(self._clock())
        return key

    def find(self, key_id: str) -> ApiKey:
        """A key that holds, by its id.

        Raises:
            ApiError: as ``authenticate``.
        """
        key = self._keys().get(key_id)
        if key is None:
            raise ApiError("bad_key", _UNKNOWN)
        self._check_holds(key)
        return key

    def _check_holds(self, key: ApiKey) -> None:
        if key.revoked_at is not None:
            raise ApiError("bad_key", "This API key has been revoked.")
        if key.expires_at is not None and key.expires_at.timestamp() <= self._clock():
            raise ApiError("expired_key", "This API key has expired.")

    def _keys(self) -> dict[str, ApiKey]:
        asked_at = self._monotonic()
        with self._lock:
            if not self.is_current():
                # Whoever waited while somebody else's read failed does not wait for one more.
                if self._failed_at > asked_at:
                    raise _unreadable()
                read_at = self._monotonic()
                try:
                    self._cached = self._read()
                except (DatabaseError, MasterKeyError) as error:
                    self._failed_at = self._monotonic()
                    _log.error("The keys cannot be read: %s", error)
                    raise _unreadable() from error
                self._cached_at = read_at
            assert self._cached is not None
            return self._cached

    def _read(self) -> dict[str, ApiKey]:
        with self._database.read() as connection:
            self._check_fingerprint(connection)
            return {row.id: _from_row(row) for row in connection.execute(select(KEYS))}

    def _forget(self) -> None:
        with self._lock:
            self._cached = None

    def _secret(self, key_id: str) -> str:
        number = int.from_bytes(self._mac(f"api key {key_id}"))
        digits = []
        for _ in range(_SECRET_LENGTH):
            number, digit = divmod(number, len(_ALPHABET))
            digits.append(_ALPHABET[digit])
        return "".join(digits)

    def _fingerprint(self) -> str:
        return self._mac("fingerprint").hex()[:32]

    def _mac(self, purpose: str) -> bytes:
        message = f"glimmer {purpose}".encode()
        return hmac.digest(self._master_key, message, hashlib.sha256)

    def _check_fingerprint(self, connection: Connection) -> bool:
        """Whether there is one. Raises MasterKeyError where it is another key's."""
        stored = _stored_fingerprint(connection)
        if stored is not None and not hmac.compare_digest(stored, self._fingerprint()):
            raise MasterKeyError(
                f"The keys in {self._database.name} were made under another master key. Give that "
                f"one ({MASTER_KEY_VARIABLE} or its file), or name another database; without it "
                "the old keys are lost."
            )
        return stored is not None

    def _now(self) -> datetime:
        return from_ms(int(self._clock() * 1000))


def open_key_store(
    database: Database, master_key_file: Path, environ: Mapping[str, str] = os.environ
) -> KeyStore:
    """The keys of a database; a master key is made only where no key was made under one yet.

    Raises:
        MasterKeyError, DatabaseError: as ``KeyStore`` and ``load_master_key``.
    """
    with database.read() as connection:
        is_first = _stored_fingerprint(connection) is None
    return KeyStore(database, load_master_key(master_key_file, environ, create=is_first))


def _stored_fingerprint(connection: Connection) -> str | None:
    query = select(SETTINGS.c.value).where(SETTINGS.c.name == _FINGERPRINT)
    value: str | None = connection.execute(query).scalar_one_or_none()
    return value


def _unreadable() -> ApiError:
    return ApiError("internal", "The server cannot read its keys.", retry_after_s=CACHE_S)


def _checked(what: str, text: str) -> str:
    text = text.strip()
    if not 0 < len(text) <= _MAX_NAME_LENGTH or not text.isprintable():
        raise InvalidParameterError(
            f"A {what} must have 1 to {_MAX_NAME_LENGTH} printable characters, but it is "
            f"{text[:_MAX_NAME_LENGTH]!r}."
        )
    return text


def _checked_endpoints(names: Iterable[str]) -> tuple[Endpoint, ...]:
    chosen = set(names)
    if unknown := sorted(chosen - set(ENDPOINTS)):
        raise InvalidParameterError(
            f"There is no endpoint {unknown[0]!r}; there are {', '.join(ENDPOINTS)}."
        )
    return tuple(name for name in ENDPOINTS if name in chosen)


def _to_row(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "project": key.project,
        "name": key.name,
        "models": json.dumps(key.models),
        "endpoints": json.dumps(key.endpoints),
        "created_ms": to_ms(key.created_at),
        "expires_ms": None if key.expires_at is None else to_ms(key.expires_at),
        "revoked_ms": None if key.revoked_at is None else to_ms(key.revoked_at),
        **asdict(key.limits),
    }


def _from_row(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        project=row.project,
        name=row.name,
        created_at=from_ms(row.created_ms),
        expires_at=None if row.expires_ms is None else from_ms(row.expires_ms),
        revoked_at=None if row.revoked_ms is None else from_ms(row.revoked_ms),
        models=tuple(json.loads(row.models)),
        endpoints=tuple(json.loads(row.endpoints)),
        limits=Limits(
            concurrency=row.concurrency,
            requests_per_minute=row.requests_per_minute,
            tokens_per_minute=row.tokens_per_minute,
            requests_per_day=row.requests_per_day,
            tokens_per_day=row.tokens_per_day,
        ),
    )
