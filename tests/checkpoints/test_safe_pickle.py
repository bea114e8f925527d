"""Programs in the shape of pickles: what would run code is refused before anything runs."""

from __future__ import annotations

import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.checkpoints.safe_pickle import PickleReader, Storage, Tensor
from glimmer.errors import CheckpointError, UnsafeCheckpointError
from tests.support import hf_folder as hf


def read(data: bytes) -> Any:
    return PickleReader(data, "the file").load()


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False)
    | st.text() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.integers(-9, 9), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@given(value=_PLAIN)
def test_plain_data_is_what_it_was(protocol: int, value: Any) -> None:
    data = pickle.dumps(value, protocol)
    if b"_codecs" in data or b"__builtin__" in data:
        return  # bytes in protocol 2 are a call
    assert read(data) == value


def test_a_tensor() -> None:
    import numpy as np

    found = read(hf.pickled(hf.tensor(np.zeros((2, 3), np.float16), "7")))
    assert found == Tensor(Storage("float16", "7", 6), 0, (2, 3), (3, 1))


class Evil:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def evil(canary: Path) -> dict[str, bytes]:
    touch = f"open({str(canary)!r}, 'w')"
    build = hf.call(hf.name("collections", "OrderedDict"))
    return {
        "eval": pickle.dumps(Evil(eval, (touch,)), 2),
        "eval 4": pickle.dumps(Evil(eval, (touch,)), 4),
        "exec": pickle.dumps(Evil(exec, (touch,)), 0 + 2),
        "system": hf.pickled(hf.call(hf.name("os", "system"), hf.text(f"touch {canary}"))),
        "posix": hf.pickled(hf.call(hf.name("posix", "system"), hf.text(f"touch {canary}"))),
        "getattr": hf.pickled(hf.call(hf.name("builtins", "getattr"), b"N", hf.text("x"))),
        "subprocess": hf.pickled(hf.name("subprocess", "Popen")),
        "torch.load": hf.pickled(hf.name("torch.serialization", "load")),
        "dotted": hf.pickled(hf.name("collections", "OrderedDict.fromkeys")),
        "inst": b"\x80\x02(" + hf.text("x") + b"ios\nsystem\n.",
        "obj": b"\x80\x02(" + hf.name("collections", "OrderedDict") + b"o.",
        "newobj": hf.pickled(hf.name("collections", "OrderedDict") + b")\x81"),
        "newobj_ex": hf.pickled(hf.name("collections", "OrderedDict") + b")}\x92"),
        "ext1": b"\x80\x02\x82\x01.",
        "ext2": b"\x80\x02\x83\x01\x00.",
        "ext4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persid": b"\x80\x02Pmodule\n.",
        "module": hf.pickled(hf.tuple_of([hf.text("module"), hf.text("x")]) + b"Q"),
        "build": hf.pickled(build + b"}(" + hf.text("__class__") + b"Nub"),
        "call of a value": hf.pickled(hf.text("x") + b")R"),
        "call of a type": hf.pickled(hf.name("torch", "FloatStorage") + b")R"),
        "storage of a function": hf.pickled(hf.tuple_of([
            hf.text("storage"), hf.name("collections", "OrderedDict"), hf.text("0"),
            hf.text("cpu"), hf.number(1)]) + b"Q"),
        "opcode": b"\x80\x02\xfe.",
    }  # fmt: skip


@pytest.mark.parametrize("name", evil(Path("x")))
def test_nothing_is_run(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(UnsafeCheckpointError, match="nothing was run"):
        read(evil(canary)[name])
    assert not canary.exists()


def doubled(begin: bytes, join: bytes, times: int) -> bytes:
    """A value that holds itself twice, again and again: tiny to write down, endless to walk."""
    body = begin + b"q\x00"
    for _ in range(times):
        body += b"h\x00h\x00" + join + b"q\x00"
    return body


HOSTILE: dict[str, bytes] = {
    "deep lists": b"\x80\x02" + b"](" * 100_000 + b"e" * 100_000 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "a million marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
    "tuple bomb as a key": hf.pickled(b"}" + doubled(b")", b"\x86", 60) + b"Ns"),
    "tuple bomb in an OrderedDict": hf.pickled(
        hf.call(hf.name("collections", "OrderedDict"),
                b"](" + doubled(b")", b"\x86", 60) + b"N\x86e")),
    "bomb called": hf.pickled(doubled(b")", b"\x86", 60) + b")R"),
    "bomb as a storage": hf.pickled(doubled(b")", b"\x86", 60) + b"Q"),
    "long text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
    "long bytes": b"\x80\x03B" + struct.pack("<I", 1 << 31) + b"x.",
    "long integer": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"x.",
    "negative integer": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "memo": b"\x80\x02h\x07.",
    "empty stack": b"\x80\x02R.",
    "no mark": b"\x80\x02t.",
    "odd items": b"\x80\x02}(Nu.",
    "append to text": hf.pickled(hf.text("x") + b"Na"),
    "two values": b"\x80\x02NN.",
    "bad text": b"\x80\x02X\x02\0\0\0\xff\xfe.",
    "no end": b"\x80\x02N",
    "endless name": b"\x80\x02c" + b"x" * 1_000_000,
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_data_ends_quickly(name: str) -> None:
    start = time.monotonic()
    try:
        read(HOSTILE[name])
    except CheckpointError as error:
        assert len(str(error)) < 1000  # noqa: PT017  # whatever is quoted is short
    assert time.monotonic() - start < 20


def test_every_beginning_of_a_pickle_is_refused() -> None:
    import numpy as np

    whole = hf.pickled(hf.state_dict({"a": hf.tensor(np.zeros((2, 3), np.float32), "0")}))
    for end in range(len(whole)):
        with pytest.raises(CheckpointError):
            read(whole[:end])
