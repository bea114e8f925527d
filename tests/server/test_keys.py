"""Keys: what authenticates, what does not, and that nothing stored gives a secret away.

``KeyStoreContract`` runs here on SQLite and in test_postgres.py on PostgreSQL.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select

from glimmer.errors import InvalidParameterError
from glimmer.server import keys as keys_module
from glimmer.server.database import KEYS, SETTINGS, USAGE, Database, from_ms
from glimmer.server.errors import ApiError
from glimmer.server.key_token import TOKEN_CLOCK_TOLERANCE_S, TOKEN_MAX_LIFETIME_S
from glimmer.server.keys import CACHE_S, ENDPOINTS, KeyStore, open_key_store
from glimmer.server.limits import Limits
from glimmer.server.master_key import MASTER_KEY_VARIABLE, MasterKeyError, load_master_key

MASTER_KEY = b"0123456789abcdef" * 4
NOW = datetime(2026, 11, 24, 16, 0, tzinfo=UTC)


class Clock:
    """Both clocks of a store; seconds since 1970."""

    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(str(tmp_path / "server.db")) as opened:
        yield opened


@pytest.fixture
def store(database: Database, clock: Clock) -> KeyStore:
    return open_store(database, clock)


def open_store(database: Database, clock: Clock, master_key: bytes = MASTER_KEY) -> KeyStore:
    return KeyStore(database, master_key, clock=clock, monotonic=clock)


def refusal(store: KeyStore, credential: str) -> str:
    with pytest.raises(ApiError) as caught:
        store.authenticate(credential)
    assert credential == "" or credential not in caught.value.message
    return caught.value.kind


def token(text: str, clock: Clock, **changes: Any) -> str:
    """As the hosted platform's SDK makes it; a change to None leaves a claim out."""
    key_id, secret = text.split(".")
    now_ms = round(clock.now * 1000)
    claims = {"api_key": key_id, "exp": now_ms + 210_000, "timestamp": now_ms, **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, secret, "HS256", headers={"alg": "HS256", "sign_type": "SIGN"})


class KeyStoreContract:
    """What holds on every database; the fixture ``database`` gives an empty one."""

    def test_a_key_authenticates_as_text_and_as_token(self, store: KeyStore, clock: Clock) -> None:
        limits = Limits(concurrency=2, tokens_per_day=2**40)
        key, text = store.create(
            " 团队 ",
            name="Li's laptop",
            models=["glm-4-9b-chat", "demo", "demo"],
            endpoints=["models", "chat"],
            expires_at=NOW + timedelta(days=1),
            limits=limits,
        )
        assert re.fullmatch(r"[0-9a-f]{32}\.[0-9A-Za-z]{32}", text)
        assert text.startswith(key.id)
        assert (key.project, key.name, key.limits) == ("团队", "Li's laptop", limits)
        assert key.models == ("glm-4-9b-chat", "demo")
        assert key.endpoints == ("chat", "models")
        assert (key.created_at, key.revoked_at) == (NOW, None)
        assert store.authenticate(text) == key
        assert store.authenticate(f" {text}\n") == key
        assert store.authenticate(token(text, clock)) == key
        assert store.list() == (key,)

    def test_another_process_knows_it_too(self, database: Database, clock: Clock) -> None:
        key, text = open_store(database, clock).create("p")
        assert open_store(database, clock).authenticate(text) == key

    def test_lists(self, store: KeyStore, clock: Clock) -> None:
        assert store.list() == ()
        first, _ = store.create("a")
        clock.now += 1
        second, _ = store.create("b")
        clock.now += 1
        third, _ = store.create("a")
        assert store.list() == (first, second, third)
        assert store.list("a") == (first, third)
        assert store.list("c") == ()

    def test_a_key_that_expires(self, store: KeyStore, clock: Clock) -> None:
        _, text = store.create("p", expires_at=NOW + timedelta(seconds=90))
        clock.now += 89
        store.authenticate(text)
        clock.now += 1
        assert refusal(store, text) == "expired_key"
        assert refusal(store, token(text, clock)) == "expired_key"

    def test_a_key_that_is_revoked(self, store: KeyStore, clock: Clock) -> None:
        key, text = store.create("p")
        store.authenticate(text)
        clock.now += 1
        revoked = store.revoke(key.id)
        assert revoked.revoked_at == from_ms(int(clock.now * 1000))
        assert refusal(store, text) == "bad_key"
        assert refusal(store, token(text, clock)) == "bad_key"
        clock.now += 1
        assert store.revoke(key.id) == revoked
        assert store.list() == (revoked,)
        assert store.any_exist()

    def test_a_running_server_sees_what_another_process_does(
        self, database: Database, store: KeyStore, clock: Clock
    ) -> None:
        assert not store.any_exist()
        other = open_store(database, clock)
        key, text = other.create("p")
        assert refusal(store, text) == "bad_key"  # from its memory
        clock.now += CACHE_S
        assert not store.is_current()
        assert store.any_exist()
        assert store.authenticate(text) == key
        assert store.is_current()
        other.revoke(key.id)
        clock.now += CACHE_S
        assert refusal(store, text) == "bad_key"

    def test_nothing_that_is_stored_gives_a_secret_away(
        self, database: Database, store: KeyStore
    ) -> None:
        _, text = store.create("p", name="n")
        with database.read() as connection:
            stored = [
                str(connection.execute(select(table)).all()) for table in (KEYS, SETTINGS, USAGE)
            ]
        assert text.partition(".")[2] not in "".join(stored)
        assert MASTER_KEY.decode() not in "".join(stored)

    def test_another_master_key_is_refused(
        self, database: Database, store: KeyStore, clock: Clock
    ) -> None:
        other = open_store(database, clock, b"x" * 32)  # nothing was made under any yet
        _, text = store.create("p")
        with pytest.raises(MasterKeyError, match="another master key") as caught:
            open_store(database, clock, b"x" * 32)
        assert database.name in str(caught.value)
        with pytest.raises(MasterKeyError):
            other.create("p")
        assert refusal(other, text) == "internal"
        assert len(store.list()) == 1

    def test_an_id_that_is_not_there(self, store: KeyStore) -> None:
        with pytest.raises(InvalidParameterError, match="There is no key 'abc'") as caught:
            store.revoke("abc.secret")
        assert "secret" not in str(caught.value)

    def test_a_key_whose_row_is_gone(
        self, database: Database, store: KeyStore, clock: Clock
    ) -> None:
        _, text = store.create("p")
        with database.write() as connection:
            connection.execute(delete(KEYS))
        assert refusal(store, text) == "bad_key"

    def test_threads(self, store: KeyStore, clock: Clock) -> None:
        made: list[tuple[Any, str]] = []

        def work() -> None:
            for _ in range(5):
                made.append(store.create("p"))
                clock.now += CACHE_S
                key, text = made[-1]
                assert store.authenticate(text) == key

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {key for key, _ in made} == set(store.list())
        assert len(made) == 20


class TestKeyStore(KeyStoreContract):
    pass


@pytest.mark.parametrize(
    "arguments",
    [
        {"project": ""},
        {"project": " "},
        {"project": "a\nb"},
        {"project": "a" * 201},
        {"project": "p", "name": "\x1b[2J"},
        {"project": "p", "models": [""]},
        {"project": "p", "endpoints": ["chats"]},
        {"project": "p", "expires_at": NOW},
    ],
)
def test_what_a_key_cannot_be(store: KeyStore, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError):
        store.create(**arguments)
    assert store.list() == ()


def test_scopes(store: KeyStore) -> None:
    free, _ = store.create("p")
    for endpoint in ENDPOINTS:
        if endpoint != "admin":
            free.check(endpoint, "any")
    with pytest.raises(ApiError, match="'admin'") as caught:
        free.check("admin")
    assert caught.value.kind == "permission"

    bound, _ = store.create("p", models=["demo"], endpoints=["chat", "admin"])
    bound.check("chat", "demo")
    bound.check("admin")
    assert bound.allows_model("demo")
    with pytest.raises(ApiError) as caught:
        bound.check("embeddings", "demo")
    assert caught.value.kind == "permission"
    with pytest.raises(ApiError) as caught:
        bound.check("chat", "other")
    assert (caught.value.kind, caught.value.param) == ("permission", "model")


@pytest.mark.parametrize("credential", ["", " ", "\n"])
def test_no_key(store: KeyStore, credential: str) -> None:
    with pytest.raises(ApiError) as caught:
        store.authenticate(credential)
    assert caught.value.kind == "no_key"


def test_wrong_keys(store: KeyStore, clock: Clock) -> None:
    key, text = store.create("p")
    _, other = store.create("p")
    secret = text.partition(".")[2]
    wrong = f"{key.id}.{other.partition('.')[2]}"
    assert refusal(store, wrong) == "wrong_secret"
    assert refusal(store, token(wrong, clock)) == "wrong_secret"
    unknown = f"{'0' * 32}.{secret}"
    assert refusal(store, unknown) == "bad_key"
    assert refusal(store, token(unknown, clock)) == "bad_key"
    for malformed in (
        key.id,
        f"{key.id}.",
        f".{secret}",
        f"{text}x",
        f"{text}.x",
        f"{key.id.upper()}.{secret}",
        f"Bearer {text}",
        "键.密",
        "\ud800.\ud800",
        "\0",
        "a" * 100_000,
    ):
        assert refusal(store, malformed) == "bad_key"


@pytest.mark.parametrize("is_known", [True, False])
def test_an_unknown_id_takes_the_same_steps(
    store: KeyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    key, text = store.create("p")
    secret = text.partition(".")[2][::-1]
    shown = f"{key.id if is_known else '0' * 32}.{secret}"
    steps: list[str] = []

    def compare(a: Any, b: Any) -> bool:
        steps.append("compare")
        return hmac.compare_digest(a, b)

    def digest(*arguments: Any) -> bytes:
        steps.append("digest")
        return hmac.digest(*arguments)

    store.any_exist()
    watched = SimpleNamespace(compare_digest=compare, digest=digest)
    monkeypatch.setattr(keys_module, "hmac", watched)
    refusal(store, shown)
    assert steps == ["digest", "compare"]


def test_times_of_tokens(store: KeyStore, clock: Clock) -> None:
    key, text = store.create("p")
    now_ms = round(clock.now * 1000)

    def ask(**changes: Any) -> str:
        shown = token(text, clock, **changes)
        try:
            assert store.authenticate(shown) == key
        except ApiError as error:
            return error.kind
        return "welcome"

    assert ask(exp=now_ms + 1) == "welcome"
    assert ask(exp=now_ms + 1.5) == "welcome"
    assert ask(exp=now_ms) == "expired_key"
    assert ask(exp=now_ms // 1000 + 210) == "expired_key"  # seconds
    assert ask(exp=now_ms + TOKEN_MAX_LIFETIME_S * 1000) == "welcome"
    assert ask(exp=now_ms + TOKEN_MAX_LIFETIME_S * 1000 + 1) == "bad_key"
    assert ask(timestamp=now_ms + TOKEN_CLOCK_TOLERANCE_S * 1000) == "welcome"
    assert ask(timestamp=now_ms + TOKEN_CLOCK_TOLERANCE_S * 1000 + 1) == "bad_key"
    assert ask(timestamp=1) == "welcome"  # exp is what ends a token
    for name in ("exp", "timestamp"):
        for value in (None, "soon", True, -1, float("nan"), float("inf"), 10**400, [], {}):
            assert ask(**{name: value}) == "bad_key"
    assert ask(nbf=2**60, iat=2**60, aud=["x"], iss="x") == "welcome"  # nothing to this server


def test_tokens_that_nobody_signed(store: KeyStore, clock: Clock) -> None:
    key, text = store.create("p")
    secret = text.partition(".")[2]
    good = token(text, clock)
    head, body, signature = good.split(".")
    claims = jwt.decode(good, options={"verify_signature": False})
    sign = {"sign_type": "SIGN"}
    assert refusal(store, f"{head}.{body}.") == "wrong_secret"
    other = "B" if signature[0] == "A" else "A"
    assert refusal(store, f"{head}.{body}.{other}{signature[1:]}") == "wrong_secret"
    assert refusal(store, jwt.encode(claims, "", "none", headers=sign)) != "expired_key"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for algorithm in ("HS384", "HS512"):
            forged = jwt.encode(claims, secret, algorithm, headers=sign)
            assert refusal(store, forged) == "wrong_secret"
    assert refusal(store, jwt.encode(claims, secret, "HS256")) == "bad_key"  # no sign_type
    for key_id in (None, 5, "", "x", key.id.upper(), [key.id]):
        assert refusal(store, token(text, clock, api_key=key_id)) == "bad_key"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


HEAD = encoded(b'{"alg":"HS256","sign_type":"SIGN"}')


@pytest.mark.parametrize(
    "credential",
    [
        "..",
        "a.b.c",
        f"{HEAD}..",
        f"{HEAD}.{encoded(b'[' * 1400)}.x",
        f"{HEAD}.{encoded(b'[' * 100_000)}.x",
        f"{HEAD}.{encoded(b'5' * 1400)}.x",
        f"{HEAD}.{encoded(b'[]')}.x",
        f"{HEAD}.{encoded(b'null')}.x",
        f"{encoded(b'[]')}.{encoded(b'{}')}.x",
        f"{encoded(b'{' * 1400)}.{encoded(b'{}')}.x",
        f"{encoded(bytes([255]))}.{encoded(bytes([255]))}.x",
    ],
)
def test_tokens_that_are_none(store: KeyStore, credential: str) -> None:
    store.create("p")
    assert refusal(store, credential) == "bad_key"


@given(
    st.text(max_size=50)
    | st.lists(st.binary(max_size=40).map(encoded), min_size=3, max_size=3).map(".".join)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
        max_leaves=9,
    ).map(lambda claims: f"{HEAD}.{encoded(json.dumps(claims).encode())}.AAAA")
)
def test_no_text_gets_in_or_breaks_it(store: KeyStore, credential: str) -> None:
    with pytest.raises(ApiError) as caught:
        store.authenticate(credential)
    assert caught.value.kind in ("no_key", "bad_key", "wrong_secret")


def test_keys_that_cannot_be_read_let_nobody_in(
    database: Database, store: KeyStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    _, text = store.create("p")
    with database.write() as connection:
        KEYS.drop(connection)
    with pytest.raises(ApiError) as caught:
        store.authenticate(text)
    assert caught.value.kind == "internal"
    assert caught.value.retry_after_s == CACHE_S
    assert str(database.path) not in caught.value.message
    assert "no such table" in caplog.text
    assert text not in caplog.text
    with pytest.raises(ApiError):
        store.any_exist()


def test_who_waits_for_a_failing_read_does_not_try_again(
    store: KeyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_waiting = threading.Semaphore(0)
    others_wait = threading.Event()
    reads: list[int] = []

    def read() -> None:
        reads.append(1)
        others_wait.wait(timeout=60)
        clock.now += 5
        raise MasterKeyError("no")

    def ask() -> None:
        num_waiting.release()
        with contextlib.suppress(ApiError):
            store.any_exist()

    monkeypatch.setattr(store, "_read", read)
    times = iter([clock.now] * 7)  # each asker looks once before it waits, the first once more
    monkeypatch.setattr(store, "_monotonic", lambda: next(times, clock.now))
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in threads:
        num_waiting.acquire()
    others_wait.set()
    for thread in threads:
        thread.join()
    assert reads == [1]


def test_a_master_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    old = os.umask(0)
    try:
        key = load_master_key(path, {})
    finally:
        os.umask(old)
    assert re.fullmatch(rb"[0-9a-f]{64}", key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_master_key(path, {}) == key
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]
    assert load_master_key(tmp_path / "no", {MASTER_KEY_VARIABLE: f" {key.decode()}\n"}) == key


def test_servers_that_start_together_have_one_master_key(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    barrier = threading.Barrier(8)
    found: list[bytes] = []

    def load() -> None:
        barrier.wait()
        found.append(load_master_key(path, {}))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_master_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "my master.key"
    load_master_key(path, {})
    path.chmod(mode)
    with pytest.raises(MasterKeyError) as caught:
        load_master_key(path, {})
    assert f"chmod 600 '{path}'" in str(caught.value)


def test_master_keys_that_do_not_do(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    with pytest.raises(MasterKeyError, match="holds 31 characters, but a master key needs"):
        load_master_key(path, {MASTER_KEY_VARIABLE: "x" * 31})
    with pytest.raises(MasterKeyError, match="There is no master key"):
        load_master_key(path, {}, create=False)
    with pytest.raises(MasterKeyError, match="Make its folder first"):
        load_master_key(tmp_path / "no" / "master.key", {})
    with pytest.raises(MasterKeyError, match="Is a directory"):
        load_master_key(tmp_path, {})
    path.touch(0o600)
    with pytest.raises(MasterKeyError, match="holds 0 characters"):
        load_master_key(path, {})


def test_a_lost_master_key_is_not_made_anew(tmp_path: Path, database: Database) -> None:
    path = tmp_path / "master.key"
    _, text = open_key_store(database, path, {}).create("p")
    open_key_store(database, path, {}).authenticate(text)
    path.unlink()
    with pytest.raises(MasterKeyError, match="Bring back the file"):
        open_key_store(database, path, {})
    assert not path.exists()
    with pytest.raises(MasterKeyError, match="another master key"):
        open_key_store(database, path, {MASTER_KEY_VARIABLE: "y" * 64})


def test_how_a_secret_is_computed(store: KeyStore) -> None:
    # Written down because a change would end every key there is.
    key, text = store.create("p")
    mac = hmac.digest(MASTER_KEY, f"glimmer api key {key.id}".encode(), hashlib.sha256)
    number, digits = int.from_bytes(mac), ""
    for _ in range(32):
        number, digit = divmod(number, 62)
        digits += "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[digit]
    assert text == f"{key.id}.{digits}"
