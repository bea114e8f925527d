"""A pickle is read as data: whatever it asks to run, nothing runs."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.checkpoints.safe_pickle import PickleReader, Storage, Tensor
from glimmer.errors import CheckpointError, MalformedCheckpointError, UnsafeCheckpointError
from tests.support.hf_folder import (
    APPEND,
    APPENDS,
    BINPERSID,
    BUILD,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    NONE,
    REDUCE,
    SETITEM,
    SETITEMS,
    STOP,
    TUPLE,
    TUPLE1,
    TUPLE2,
    TUPLE3,
    Part,
    dict_of,
    get,
    global_,
    number,
    ordered_dict,
    program,
    put,
    state_dict,
    text,
    tuple_of,
)


def read(data: bytes) -> Any:
    return PickleReader(data, "model.bin").load()


# What PyTorch writes


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        [0, 255, 256, 65536, -1, 2**31, -(2**63), 0x1950A86A20F9469CFC6C],
        1e-5,
        "text, 中文 \ud800",
        "x" * 300,
        b"bytes",
        b"b" * 300,
        (),
        (1, (2, 3, (4, 5, 6, 7))),
        [[], {}, {"a": {"b": [1]}}, {1: "one", -1: "minus"}],
        [[1, 2]] * 3,
        list(range(3000)),
        {str(i): i for i in range(3000)},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_plain_data(value: Any, protocol: int) -> None:
    if protocol < 3 and isinstance(value, bytes):
        pytest.skip("protocol 2 writes bytes as a call")
    assert read(pickle.dumps(value, protocol)) == value


def test_an_ordered_dict_with_versions_of_modules() -> None:
    value = collections.OrderedDict(a=1, b=2)
    value._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    assert read(pickle.dumps(value, 2)) == {"a": 1, "b": 2}


def test_what_is_named_twice_is_one_value() -> None:
    shared = ["x"]
    first, second = read(pickle.dumps([shared, shared], 2))
    assert first is second


def test_pythons_2_count_the_memo_from_one() -> None:
    made = EMPTY_LIST + put(1) + text("a") + put(2) + APPEND + get(1) + get(2) + TUPLE3
    assert read(program(made)) == (["a"], ["a"], "a")


def test_strings_of_python_2() -> None:
    assert read(program(b"U\x03a\xe9b" + b"T" + struct.pack("<I", 2) + b"\xff." + TUPLE2)) == (
        "a\xe9b",
        "\xff.",
    )


def test_a_state_dict() -> None:
    parts = {
        "w": Part("0", "float16", (2, 3), strides=(1, 2), offset=4, num_elements=99),
        "b": Part("1", "bfloat16", (), is_parameter=True),
    }
    assert read(program(state_dict(parts))) == {
        "w": Tensor(Storage("float16", "0", 99), 4, (2, 3), (1, 2)),
        "b": Tensor(Storage("bfloat16", "1", 1), 0, (), ()),
    }
    old = {"w": Part("0", "float32", (2,), num_elements=9, view=7)}
    storage = Storage("float32", "0", 9, first_element=7)
    assert read(program(state_dict(old, legacy=True))) == {"w": Tensor(storage, 0, (2,), (1,))}


def test_pickles_follow_one_another_and_storages_are_kept() -> None:
    wrapped = dict_of({"step": number(1), "deep": state_dict({"w": Part("k", "int8", (3,))})})
    data = program(wrapped) + program(number(7)) + b"rest"
    reader = PickleReader(data, "model.bin")
    assert list(reader.load()) == ["step", "deep"]
    assert reader.load() == 7
    assert data[reader.position :] == b"rest"
    assert reader.storages == {"k": Storage("int8", "k", 3)}


# What runs code


@pytest.fixture
def canary(tmp_path: Path) -> Any:
    """The path of a file that an attack would make; it must not be there in the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def attacks(canary: Path) -> dict[str, Any]:
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Attack(os.system, touch),
        "os.popen": Attack(os.popen, touch),
        "eval": Attack(eval, code),
        "exec": Attack(exec, code),
        "open": Attack(open, str(canary), "w"),
        "__import__": Attack(__import__, "os"),
        "getattr": Attack(getattr, os, "system"),
        "subprocess.Popen": Attack(subprocess.Popen, ["touch", str(canary)]),
        "subprocess.check_output": Attack(subprocess.check_output, ["touch", str(canary)]),
        "os.mkdir": Attack(os.mkdir, str(canary)),
        "pickle.loads": Attack(pickle.loads, pickle.dumps(Attack(os.mkdir, str(canary)))),
    }


@pytest.mark.parametrize("protocol", [2, 4])  # GLOBAL, STACK_GLOBAL
@pytest.mark.parametrize("name", [name for name in attacks(Path()) if name != "getattr"])
def test_an_attack_is_refused(name: str, protocol: int, canary: Path) -> None:
    data = pickle.dumps({"weight": attacks(canary)[name]}, protocol)
    with pytest.raises(UnsafeCheckpointError, match=r"(?s)model\.bin asks for .* nothing was run"):
        read(data)


def test_the_attacks_are_real(tmp_path: Path) -> None:
    for name in ("os.system", "eval", "subprocess.check_output", "os.mkdir"):
        path = tmp_path / name
        pickle.loads(pickle.dumps(attacks(path)[name], 2))
        assert path.exists(), name


TOUCH = text("touch canary")
UNSAFE = {
    "posix.system": global_("posix", "system") + TOUCH + TUPLE1 + REDUCE,
    "nt.system": global_("nt", "system") + TOUCH + TUPLE1 + REDUCE,
    "by STACK_GLOBAL": text("posix") + text("system") + b"\x93" + TOUCH + TUPLE1 + REDUCE,
    "a name with dots": global_("torch", "serialization.load"),
    "a module with dots": global_("torch.serialization", "load"),
    "a name that is cut otherwise": global_("collections.OrderedDict", "__init__"),
    "a storage that is called": global_("torch", "FloatStorage") + EMPTY_TUPLE + REDUCE,
    "a call of a text": TOUCH + EMPTY_TUPLE + REDUCE,
    "a call of a tensor": Part("0", "int8", (1,)).pickled(False) + EMPTY_TUPLE + REDUCE,
    "INST": MARK + TOUCH + b"iposix\nsystem\n",
    "OBJ": MARK + global_("collections", "OrderedDict") + TOUCH + b"o",
    "NEWOBJ": global_("collections", "OrderedDict") + EMPTY_TUPLE + b"\x81",
    "NEWOBJ_EX": global_("collections", "OrderedDict") + EMPTY_TUPLE + EMPTY_DICT + b"\x92",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pcanary\n",
    "another object outside": text("module") + text("x") * 4 + MARK + TUPLE1 + BINPERSID,
    "a storage of no known type": tuple_of(
        [text("storage"), text("FloatStorage"), text("0"), text("cpu"), number(1)]
    )
    + BINPERSID,
    "a state with __setstate__": ordered_dict({})
    + dict_of({"_metadata": NONE, "__setstate__": global_("collections", "OrderedDict")})
    + BUILD,
    "a state of slots": ordered_dict({}) + NONE + dict_of({"keys": NONE}) + TUPLE2 + BUILD,
    "a state that is empty": ordered_dict({}) + EMPTY_DICT + BUILD,
    "a state that is a text": ordered_dict({}) + TOUCH + BUILD,
}


@pytest.mark.parametrize("name", UNSAFE)
def test_what_may_run_code_is_refused(name: str) -> None:
    with pytest.raises(UnsafeCheckpointError, match="nothing was run"):
        read(program(UNSAFE[name]))


def test_the_message_names_what_was_asked_and_where() -> None:
    with pytest.raises(UnsafeCheckpointError) as caught:
        read(program(EMPTY_DICT + global_("posix", "system")))
    message = str(caught.value)
    for fragment in ("model.bin", "'posix.system'", "at byte 16", "safetensors"):
        assert fragment in message


# What is no pickle of PyTorch's

TENSOR = global_("torch._utils", "_rebuild_tensor_v2")
STORAGE = (
    tuple_of([text("storage"), global_("torch", "FloatStorage"), text("0"), NONE, number(9)])
    + BINPERSID
)


def tensor_of(*arguments: bytes) -> bytes:
    return TENSOR + tuple_of(arguments) + REDUCE


SIZE = number(3) + TUPLE1
MALFORMED = {
    "nothing": b"",
    "no value": program(b""),
    "two values": program(NONE + NONE),
    "a mark as the value's company": program(MARK + NONE),
    "no end": b"\x80\x02N",
    "INT": program(b"I1\n"),
    "DUP": program(NONE + b"2" + TUPLE2),
    "an instruction that is none": program(b"\xff"),
    "a bytearray": program(b"\x96" + struct.pack("<Q", 1) + b"x"),
    "a set": program(b"\x8f"),
    "a tuple of nothing": program(TUPLE2),
    "a mark that is missing": program(NONE + NONE + APPENDS),
    "a mark on an empty stack": program(TUPLE),
    "an append to a dict": program(EMPTY_DICT + NONE + APPEND),
    "an append to nothing": program(NONE + APPEND),
    "an item in a list": program(EMPTY_LIST + text("a") + NONE + SETITEM),
    "a key without a value": program(EMPTY_DICT + MARK + text("a") + SETITEMS),
    "a list as a key": program(EMPTY_DICT + EMPTY_LIST + NONE + SETITEM),
    "a tuple as a key": program(EMPTY_DICT + EMPTY_TUPLE + NONE + SETITEM),
    "a large number as a key": program(EMPTY_DICT + number(1 << 61) + NONE + SETITEM),
    "a large negative number as a key": program(EMPTY_DICT + number(-(1 << 61)) + NONE + SETITEM),
    "a truth value as a key": program(EMPTY_DICT + b"\x88" + NONE + SETITEM),
    "a mark as a key": program(EMPTY_DICT + MARK + NONE + SETITEM),
    "a memo that is not there": program(get(5)),
    "a memo far ahead": program(NONE + put(1 << 31)),
    "a memo of nothing": program(put(0)),
    "a name without an end": program(b"ctorch\nFloatStorage"),
    "a long name": program(b"c" + b"x" * 100_000 + b"\nn\n"),
    "a name that is no UTF-8": program(b"c\xff\nn\n"),
    "a text that is no UTF-8": program(b"X" + struct.pack("<I", 1) + b"\xff"),
    "a name that is a number": program(number(1) + number(2) + b"\x93"),
    "a call of nothing": program(REDUCE),
    "a call with a list": program(global_("collections", "OrderedDict") + EMPTY_LIST + REDUCE),
    "a call with too much": program(tensor_of(*[NONE] * 9)),
    "a call with too little": program(tensor_of(STORAGE)),
    "an ordered dict of items": program(
        global_("collections", "OrderedDict") + EMPTY_LIST + TUPLE1 + REDUCE
    ),
    "a state of a list": program(EMPTY_LIST + EMPTY_DICT + BUILD),
    "a storage of a negative size": program(
        tuple_of([text("storage"), global_("torch", "IntStorage"), text("0"), NONE, number(-1)])
        + BINPERSID
    ),
    "a storage of a huge size": program(state_dict({"w": Part("0", "int8", (1 << 48,))})),
    "a storage of two types": program(
        state_dict({"a": Part("0", "int8", (1,)), "b": Part("0", "int16", (1,))})
    ),
    "a storage without a key": program(
        tuple_of([text("storage"), global_("torch", "IntStorage"), NONE, NONE, number(1)])
        + BINPERSID
    ),
    "a view of nothing": program(
        tuple_of(
            [text("storage"), global_("torch", "IntStorage"), text("0"), NONE, number(1), SIZE]
        )
        + BINPERSID
    ),
    "a tensor without a storage": program(tensor_of(NONE, number(0), SIZE, SIZE)),
    "a tensor of a negative size": program(
        tensor_of(STORAGE, number(0), number(-1) + TUPLE1, SIZE)
    ),
    "a tensor of a negative stride": program(
        tensor_of(STORAGE, number(0), SIZE, number(-1) + TUPLE1)
    ),
    "a tensor of a negative offset": program(tensor_of(STORAGE, number(-1), SIZE, SIZE)),
    "a tensor of a text": program(tensor_of(STORAGE, number(0), text("ab"), text("ab"))),
    "a tensor with more sizes than strides": program(
        tensor_of(STORAGE, number(0), SIZE, EMPTY_TUPLE)
    ),
    "a tensor of nine dimensions": program(state_dict({"w": Part("0", "int8", (1,) * 9)})),
    "LONG1 that is long": program(b"\x8a\x11" + bytes(17)),
    "LONG4 that is negative": program(b"\x8b" + struct.pack("<i", -1)),
}
for _code, _format in {
    "X": "<I", "\x8d": "<Q", "T": "<I", "B": "<I", "\x8b": "<i", "\x8e": "<Q", "\x8c": "<B",
    "U": "<B", "C": "<B", "\x96": "<Q", "\x95": "<Q",
}.items():  # fmt: skip
    _largest = (1 << 8 * struct.calcsize(_format) - (_format == "<i")) - 1
    _length = struct.pack(_format, _largest)
    MALFORMED[f"a huge length after {_code!r}"] = program(_code.encode("latin-1") + _length)


@pytest.mark.parametrize("name", MALFORMED)
def test_what_pytorch_does_not_write_is_refused(name: str) -> None:
    with pytest.raises(MalformedCheckpointError, match=r"^model\.bin is not a pickle that PyTorch"):
        read(MALFORMED[name])


VALID = program(
    state_dict(
        {
            "layers.0.weight": Part("0", "float16", (2, 3), strides=(1, 2)),
            "layers.0.bias": Part("1", "float32", (3,), is_parameter=True, view=1),
        },
        legacy=True,
    )
) + pickle.dumps([{"a": (1, 2.5, None, True)}, "text", b"bytes", 2**70], 4)


def read_both(data: bytes) -> list[Any]:
    reader = PickleReader(data, "model.bin")
    return [reader.load(), reader.load()]


def test_every_truncation_is_refused() -> None:
    read_both(VALID)
    for length in range(len(VALID)):
        with pytest.raises(MalformedCheckpointError):
            read_both(VALID[:length])


def test_every_byte_that_changes_is_survived() -> None:
    for position in range(len(VALID)):
        for byte in (0, 1, 0x7F, 0x80, 0xFF, *b"(.0R}]tcQ"):
            data = bytearray(VALID)
            data[position] = byte
            check(bytes(data))


def check(data: bytes) -> None:
    try:
        read_both(data)
    except CheckpointError:
        return


@given(st.binary(max_size=60))
def test_noise_is_survived(noise: bytes) -> None:
    check(b"\x80\x02" + noise)


INSTRUCTIONS = st.sampled_from(
    [
        MARK, STOP, NONE, EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, REDUCE, BUILD, APPEND, APPENDS,
        SETITEM, SETITEMS, TUPLE, TUPLE1, TUPLE2, BINPERSID, b"0", b"1", b"\x94", TENSOR, STORAGE,
        SIZE, get(0), get(1), put(0), put(1), text("k"), text("_metadata"), number(0), number(9),
        global_("collections", "OrderedDict"), global_("torch", "Size"), global_("torch", "int8"),
        global_("torch._utils", "_rebuild_parameter"), b"\x93", b"G" + bytes(8),
    ]
)  # fmt: skip


@given(st.lists(INSTRUCTIONS, max_size=40))
def test_any_program_ends_in_a_value_or_an_error(instructions: list[bytes]) -> None:
    check(program(b"".join(instructions)) * 2)


# Time and memory: the length of the program bounds both


def peak_bytes(data: bytes) -> int:
    """What reading took at most, whether or not it went well."""
    tracemalloc.start()
    try:
        PickleReader(data, "model.bin").load()
    except CheckpointError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("opened", [EMPTY_LIST, MARK, EMPTY_DICT + text("")], ids="[({")
def test_depth_is_no_danger(opened: bytes) -> None:
    closed = {EMPTY_LIST: APPEND, MARK: TUPLE, EMPTY_DICT + text(""): SETITEM}[opened]
    depth = 100_000
    value = read(program(opened * depth + NONE + closed * depth))
    for _ in range(depth):
        (value,) = value.values() if isinstance(value, dict) else value
    assert value is None


@pytest.mark.parametrize(
    "used",
    [
        b"",
        EMPTY_DICT + get(30) + NONE + SETITEM,  # as a key: hashing it would never end
        get(30) + EMPTY_TUPLE + REDUCE,  # in an error: spelling it out would never end
        get(30) + BINPERSID,
        tensor_of(STORAGE, get(30), SIZE, SIZE),
        tensor_of(STORAGE, number(0), get(30), get(30)),
        ordered_dict({}) + get(30) + BUILD,
    ],
)
@pytest.mark.parametrize("pair", [TUPLE2, b"list"])
def test_a_value_that_doubles_is_no_danger(used: bytes, pair: bytes) -> None:
    doubled = put(0)
    for level in range(30):
        both = get(level) + get(level)
        doubled += (both + TUPLE2 if pair == TUPLE2 else EMPTY_LIST + MARK + both + APPENDS) + put(
            level + 1
        )
    assert peak_bytes(program(NONE + doubled + b"0" * 31 + used)) < 1 << 20


LONG = 20_000
COPIES = {
    "items of a dict": global_("collections", "OrderedDict") + put(1) + get(0) + TUPLE1 + REDUCE,
    "arguments": global_("torch._utils", "_rebuild_parameter") + get(0) + REDUCE,
    "sizes": tensor_of(STORAGE, number(0), get(0), get(0)),
    "a size": global_("torch", "Size") + get(0) + TUPLE1 + REDUCE,
    "a state": ordered_dict({}) + get(0) + BUILD,
    "a persistent tuple": get(0) + BINPERSID,
}


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
@pytest.mark.parametrize("name", COPIES)
def test_a_long_value_is_not_copied_by_naming_it(name: str, kind: str) -> None:
    pairs = b"".join(b"M" + struct.pack("<H", i) + NONE for i in range(LONG))
    made = {
        "list": EMPTY_LIST + MARK + NONE * LONG + APPENDS,
        "tuple": MARK + NONE * LONG + TUPLE,
        "dict": EMPTY_DICT + MARK + pairs + SETITEMS,
    }[kind]
    once = peak_bytes(program(made + put(0) + b"0" + COPIES[name]))
    often = peak_bytes(program(made + put(0) + b"0" + COPIES[name] * 50))
    assert often < once + 100_000
