from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.checkpoints.json_file import MAX_BYTES, parse_object, read_object
from glimmer.errors import MalformedCheckpointError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
)


@given(st.dictionaries(st.text(), values))
def test_an_object_is_read(value: dict[str, object]) -> None:
    assert parse_object(json.dumps(value).encode(), "config.json") == value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_in_any_encoding_that_json_knows(encoding: str) -> None:
    assert parse_object('{"你": "好"}'.encode(encoding), "config.json") == {"你": "好"}


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (b"", "is not JSON"),
        (b"{", "truncated or damaged"),
        (b'{"a": 1', "truncated or damaged"),
        (b'{"a": 1}}', "is not JSON"),
        (b'{"a": \xff}', "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[1]", "holds a list, but it must be an object"),
        (b"null", "holds a NoneType"),
        (b'"text"', "holds a str"),
        (b'{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice"),
        (b'{"a": {"b": 1, "b": 1}}', "has the key 'b' twice"),
        (b'{"' + b"k" * 1000 + b'":1,"' + b"k" * 1000 + b'":1}', "has the key 'kkk"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "more than 64 levels deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 levels deep"),
        (b'{"a":' + b"[" * 1_000_000, "is not JSON"),
        (b'{"a":' * 1_000_000, "is not JSON"),
    ],
    ids=lambda item: repr(item[:24]),
)
def test_anything_else_is_refused_by_name(data: bytes, fragment: str) -> None:
    with pytest.raises(MalformedCheckpointError) as caught:
        parse_object(data, "some/config.json")
    message = str(caught.value)
    assert message.startswith("some/config.json ")
    assert fragment in message
    assert len(message) < 400


@pytest.mark.parametrize("depth", [62, 63])
def test_depth_below_the_limit_is_read(depth: int) -> None:
    parse_object(b'{"a":' + b"[" * depth + b"]" * depth + b"}", "config.json")


def test_a_key_twice_among_many_is_found_at_once() -> None:
    pairs = b"".join(b'"%d":0,' % i for i in range(200_000))
    # Counting each of them took an hour.
    with pytest.raises(MalformedCheckpointError, match="has the key '199999' twice"):
        parse_object(b"{" + pairs + b'"199999":0}', "config.json")


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2 * MAX_BYTES)
    with pytest.raises(MalformedCheckpointError, match=f"has 200000000 bytes; at most {MAX_BYTES}"):
        read_object(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MalformedCheckpointError, match=r"absent\.json cannot be read: No"):
        read_object(tmp_path / "absent.json")
    with pytest.raises(MalformedCheckpointError, match="cannot be read: Is a directory"):
        read_object(tmp_path)
