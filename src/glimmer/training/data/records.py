"""A file as records: JSON objects, one a line (JSONL) or in one list (JSON), a few bytes at a time.

Knows no form of training data.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from glimmer.errors import ModelNotFoundError, TrainingDataError

MAX_RECORD_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_SPACE = b" \t\r\n"
# Up to the next sign that tells where a value of a list ends: a bracket; between values, a comma.
# Strings are passed over whole, since they may hold any of them.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_INSIDE = re.compile(rb'(?:[^"\[\]{}]++|%b)*+([\[\]{}])' % _STRING, re.DOTALL)
_BETWEEN = re.compile(rb'(?:[^"\[\]{},]++|%b)*+([\[\]{},])' % _STRING, re.DOTALL)
_NO_SPACE = re.compile(rb"[^ \t\r\n]")


@dataclass(frozen=True, slots=True)
class Record:
    line: int
    number: int
    value: Any
    """A JSON object; None if ``problem`` says what there is in its place."""
    problem: str | None = None


def read_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of a file, broken ones too; at most one of them is in memory.

    Raises:
        ModelNotFoundError: no such file.
        TrainingDataError: it is empty, cannot be read, or cannot be cut into records.
    """
    path = Path(path)
    if not path.exists():
        raise ModelNotFoundError(f"There is no file {path} of training data.")
    try:
        with path.open("rb") as stream:
            if stream.read(3) != codecs.BOM_UTF8:
                stream.seek(0)
            start = stream.tell()
            first = _first_byte(stream)
            if not first:
                raise TrainingDataError(f"{path} is empty; it must hold JSONL or a JSON list.")
            stream.seek(start)
            yield from _from_list(stream, path) if first == b"[" else _from_lines(stream)
    except OSError as error:
        raise TrainingDataError(
            f"{path} cannot be read: {error.strerror or error}. Give a file of JSONL (an object a "
            "line) or JSON (a list of objects)."
        ) from error


def _first_byte(stream: IO[bytes]) -> bytes:
    while block := stream.read(_CHUNK_BYTES):
        if block := block.lstrip(_SPACE):
            return block[:1]
    return b""


def _from_lines(stream: IO[bytes]) -> Iterator[Record]:
    line = number = 0
    while data := stream.readline(MAX_RECORD_BYTES):
        line += 1
        if not data.strip(_SPACE):
            continue
        number += 1
        if len(data) == MAX_RECORD_BYTES and not data.endswith(b"\n"):
            while (rest := stream.readline(_CHUNK_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield Record(line, number, None, _TOO_LARGE)
            continue
        yield _parsed(line, number, data)


_TOO_LARGE = f"it is larger than {MAX_RECORD_BYTES >> 20} MiB, the most that one record may take."


def _parsed(line: int, number: int, data: bytes) -> Record:
    def broken(what: str) -> Record:
        return Record(line, number, None, what)

    try:
        text = data.decode("utf-8")
        value = json.loads(text)
        if "\\u" in text:  # half of a surrogate pair is JSON, but no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        return broken(
            f"it is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}. Save the "
            "file as UTF-8."
        )
    except UnicodeEncodeError:
        return broken("a text holds half of a surrogate pair (\\ud800 to \\udfff), no character.")
    except RecursionError:
        return broken("it is nested too deeply.")
    except ValueError as error:
        return broken(f"it is not JSON: {error}. Found {text.strip()!r:.60}.")
    if not isinstance(value, dict):
        return broken(f"it must be a JSON object, but it is {_kind(value)}.")
    return Record(line, number, value)


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


class _Window:
    """A stretch of a file, and a place in it: what lies before it is dropped with the next read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.data = b""
        self.at = 0
        self.line = 1

    @property
    def left(self) -> int:
        """Bytes behind the place."""
        return len(self.data) - self.at

    def more(self) -> bool:
        block = self._stream.read(_CHUNK_BYTES)
        self.data, self.at = self.data[self.at :] + block, 0
        return bool(block)

    def take(self, length: int) -> bytes:
        """The next bytes, which are passed."""
        taken = self.data[self.at : self.at + length]
        self.at += length
        self.line += taken.count(b"\n")
        return taken

    def peek(self) -> bytes:
        """The next byte that is no space; those before it are passed. None at the end."""
        while True:
            found = _NO_SPACE.search(self.data, self.at)
            self.take((len(self.data) if found is None else found.start()) - self.at)
            if self.left or not self.more():
                return self.data[self.at : self.at + 1]


def _from_list(stream: IO[bytes], path: Path) -> Iterator[Record]:
    window = _Window(stream)
    assert window.peek() == b"["
    window.take(1)
    number = 0
    if window.peek() == b"]":
        window.take(1)
    else:
        ended = False
        while not ended:
            window.peek()
            number, line = number + 1, window.line
            data, end = _value(window, path)
            yield _parsed(line, number, data)
            ended = end == b"]"
    if (rest := window.peek()) != b"":
        raise TrainingDataError(
            f"{path}: line {window.line}: the list has ended, but {rest!r} follows. A file of JSON "
            "is one list; objects one a line, without brackets and commas around them, are JSONL."
        )


def _value(window: _Window, path: Path) -> tuple[bytes, bytes]:
    """The bytes of one value of the list, and what ended it: a comma or the list's bracket."""
    length, depth = 0, 0
    while True:
        signs = _INSIDE if depth else _BETWEEN
        if (found := signs.match(window.data, window.at + length)) is None:
            _extend(window, path)
            continue
        sign, length = found[1], found.end() - window.at
        if sign in b"[{":
            depth += 1
        elif depth:
            depth -= 1
        else:  # a comma, or a bracket that closes the list
            break
    data = window.take(length)
    return data[:-1], data[-1:]


def _extend(window: _Window, path: Path) -> None:
    if window.left > MAX_RECORD_BYTES:
        raise TrainingDataError(
            f"{path}: line {window.line}: the record that begins here is larger than "
            f"{MAX_RECORD_BYTES >> 20} MiB, or a quotation mark is missing in it."
        )
    if not window.more():
        raise TrainingDataError(
            f"{path}: line {window.line}: the file ends within the record that begins here. It is "
            "incomplete, or a bracket or quotation mark is missing."
        )
