"""Reads the pickles of PyTorch checkpoints as data.

A pickle is a program for a stack machine: two of its instructions import and call whatever they
name. This machine has neither. It knows the instructions that build plain data and a short list of
names, for which it has inert stand-ins; anything else is an error that ends the program there.
Nothing is ever imported, called or constructed but what is in this file.

Time and memory are bounded by the program's own length: strings are slices of it, integers are
short, every other instruction adds one reference, and a call takes a few arguments and copies
nothing, so that naming a large value a thousand times costs no more than naming a small one.
Instructions: pickletools of the standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from glimmer.errors import MalformedCheckpointError, UnsafeCheckpointError

MAX_BYTES = 1 << 25
"""Of a pickle: some 200,000 tensors. The weights lie outside."""
MAX_DIMS = 8
_MAX_ARGUMENTS = 8
_MAX_INT_BYTES = 16
_MAX_NAME_BYTES = 512
_MAX_NUMBER_KEY = 1 << 20


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file: ``("storage", type, key, device, count, ...)``."""

    dtype: str
    key: str
    num_elements: int
    first_element: int = 0
    """Where it is a view of the storage of that key, as old files have it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A part of a storage; ``offset`` and ``strides`` count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that the program mentions; ``make`` builds what calling it would stand for."""

    name: str
    make: Callable[..., Any] | None = None
    value: str | None = None


_STORAGES = {
    "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64", "CharStorage": "int8", "ByteStorage": "uint8",
    "ShortStorage": "int16", "IntStorage": "int32", "LongStorage": "int64", "BoolStorage": "bool",
}  # fmt: skip
_DTYPES = (
    "float32", "float16", "bfloat16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool",
)  # fmt: skip


def _shown(value: object) -> str:
    """For an error. A container may hold itself a million times over: it is not spelt out."""
    plain = isinstance(value, (str, int, float, bool, type(None)))
    return f"{value!r:.60}" if plain else f"a {type(value).__name__}"


def _set_items(target: dict[Any, Any], items: Sequence[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Not any tuple: the hash of one that holds itself many times over never ends. Nor any
        # number: a dictionary of numbers that were chosen to collide takes hours to fill.
        if not isinstance(key, str) and not (type(key) is int and abs(key) < _MAX_NUMBER_KEY):
            raise TypeError(f"{_shown(key)} as a key")
        target[key] = value


def _ordered_dict() -> dict[Any, Any]:
    return {}  # its items come by instructions of their own


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_rest: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise TypeError("a tensor without sizes and strides")
    if len(shape) != len(strides) or len(shape) > MAX_DIMS:
        raise ValueError(f"a tensor of {len(shape)} sizes and {len(strides)} strides")
    for number in (offset, *shape, *strides):
        if type(number) is not int or not 0 <= number < 1 << 48:
            raise ValueError(f"{_shown(number)} in a tensor's offset, sizes and strides")
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_rest: Any) -> Any:
    return tensor


def _size(sizes: Any) -> Any:
    return sizes


_GLOBALS: dict[str, _Global] = {
    g.name: g
    for g in (
        _Global("collections.OrderedDict", _ordered_dict),
        _Global("torch._utils._rebuild_tensor_v2", _rebuild_tensor),
        _Global("torch._utils._rebuild_tensor", _rebuild_tensor),
        _Global("torch._utils._rebuild_parameter", _rebuild_parameter),
        _Global("torch.Size", _size),
        *(_Global(f"torch.{name}", value=dtype) for name, dtype in _STORAGES.items()),
        *(_Global(f"torch.{dtype}", value=dtype) for dtype in _DTYPES),
    )
}
_MARK = object()


class PickleReader:
    """Runs the pickles that follow one another in ``data``; ``position`` is where the next begins.

    ``what`` names the data in errors.
    """

    def __init__(self, data: bytes, what: str, position: int = 0) -> None:
        self._data = data
        self._what = what
        self.position = position
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        """All that the pickles mentioned, by key."""

    def load(self) -> Any:
        """The next pickle's value: plain data, ``Storage`` and ``Tensor``.

        Raises:
            UnsafeCheckpointError: the pickle asks for something that runs code; nothing was run.
            MalformedCheckpointError: truncated, or not a pickle that PyTorch writes.
        """
        self._stack, self._memo = [], {}
        data, codes = self._data, _INSTRUCTIONS
        try:
            while True:
                code = data[self.position]
                self.position += 1
                if code == _STOP:
                    (value,) = self._stack
                    return value
                run = codes.get(code)
                if run is not None:
                    run(self)
                elif code in _UNSAFE:
                    raise self._unsafe(_UNSAFE[code])
                else:
                    raise ValueError(f"the instruction {code:#04x}")
        except (LookupError, TypeError, ValueError, struct.error) as error:
            raise MalformedCheckpointError(
                f"{self._what} is not a pickle that PyTorch writes, or is damaged at byte "
                f"{self.position}: {error or type(error).__name__}"
            ) from error

    def _unsafe(self, asked: str) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(
            f"{self._what} asks for {asked} at byte {self.position - 1}, which is no weight and "
            "may run code. It was refused and nothing was run. Do not load this file with another "
            "program; get the model from its publisher, as safetensors if there is a choice."
        )

    # Taking from the program

    def _take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self._data):
            raise ValueError("it ends within an instruction")
        return self._data[start : self.position]

    def _number(self, format: str) -> int:
        value: int = struct.unpack(format, self._take(struct.calcsize(format)))[0]
        return value

    def _line(self) -> str:
        start = self.position
        length = self._data[start : start + _MAX_NAME_BYTES].index(b"\n")
        self.position += length + 1
        return self._data[start : start + length].decode("utf-8")

    def _counted(self, format: str) -> bytes:
        return self._take(self._number(format))

    # Working on the stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        index = len(self._stack) - 1
        while self._stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise ValueError("a mark is missing")
        items = self._stack[index + 1 :]
        del self._stack[index:]
        return items

    def _top(self, *kinds: type) -> Any:
        value = self._stack[-1]
        if not isinstance(value, kinds):
            raise TypeError(f"{type(value).__name__} where {kinds[0].__name__} is due")
        return value

    def _tuple(self, count: int) -> None:
        self._push(tuple(self._pop(count)))

    def _append(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _set(self, items: list[Any]) -> None:
        _set_items(self._top(dict), items)

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("the stack is empty")
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items

    def _global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in _GLOBALS:
            raise self._unsafe(_shown(full))
        self._push(_GLOBALS[full])

    def _reduce(self) -> None:
        arguments = self._stack.pop()
        function = self._stack.pop()
        if not isinstance(function, _Global) or function.make is None:
            name = function.name if isinstance(function, _Global) else _shown(function)
            raise self._unsafe(f"a call of {name}")
        if not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
            raise TypeError("a call without arguments, or with too many")
        self._push(function.make(*arguments))

    def _build(self) -> None:
        # A state dict carries the versions of its modules this way; they say nothing of weights.
        state = self._stack.pop()
        self._top(dict)
        if not isinstance(state, dict) or state.keys() != {"_metadata"}:
            raise self._unsafe("the setting of an object's state")

    def _persistent(self) -> None:
        item = self._stack.pop()
        if not isinstance(item, tuple) or len(item) not in (5, 6) or item[0] != "storage":
            raise self._unsafe(f"{_shown(item)} outside the pickle")
        _, dtype, key, _device, count, *rest = item
        if not isinstance(dtype, _Global) or dtype.value is None:
            raise self._unsafe(f"a storage of {_shown(dtype)}")
        view = rest[0] if rest else None  # (key of the view, its first element, its length)
        first = view[1] if view else 0
        for number in (count, first):
            if type(number) is not int or not 0 <= number < 1 << 48:
                raise ValueError(f"{_shown(number)} as a storage's number of elements")
        if not isinstance(key, str):
            raise TypeError(f"{_shown(key)} as the key of a storage")
        storage = Storage(dtype.value, key, count, first)
        known = self.storages.setdefault(key, storage)
        if known.dtype != storage.dtype:
            raise ValueError(f"a storage of {known.dtype} and {storage.dtype}")
        self._push(storage)

    def _memoize(self, index: int) -> None:
        # In turn; Python 2 counted from 1.
        if index > len(self._memo) + 1:
            raise ValueError(f"a memo of {len(self._memo)} gets number {index}")
        self._memo[index] = self._stack[-1]


def _discard(_value: object) -> None:
    pass


def _long(reader: PickleReader, format: str) -> None:
    length = reader._number(format)
    if not 0 <= length <= _MAX_INT_BYTES:
        raise ValueError(f"an integer of {length} bytes")
    reader._push(int.from_bytes(reader._take(length), "little", signed=True))


def _text(reader: PickleReader, format: str) -> None:
    reader._push(reader._counted(format).decode("utf-8", "surrogatepass"))


def _stack_global(reader: PickleReader) -> None:
    name = reader._stack.pop()
    module = reader._stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError("a global that is no name")
    reader._global(module, name)


_STOP = ord(".")
_INSTRUCTIONS: dict[int, Callable[[PickleReader], None]] = {
    0x80: lambda r: _discard(r._take(1)),  # the protocol's number
    0x95: lambda r: _discard(r._take(8)),  # the length of a frame
    ord("("): lambda r: r._push(_MARK),
    ord("0"): lambda r: _discard(r._pop(1)),
    ord("1"): lambda r: _discard(r._since_mark()),
    ord("N"): lambda r: r._push(None),
    0x88: lambda r: r._push(True),
    0x89: lambda r: r._push(False),
    ord("J"): lambda r: r._push(r._number("<i")),
    ord("K"): lambda r: r._push(r._number("<B")),
    ord("M"): lambda r: r._push(r._number("<H")),
    0x8A: lambda r: _long(r, "<B"),
    0x8B: lambda r: _long(r, "<i"),
    ord("G"): lambda r: r._push(struct.unpack(">d", r._take(8))[0]),
    ord("X"): lambda r: _text(r, "<I"),
    0x8C: lambda r: _text(r, "<B"),
    0x8D: lambda r: _text(r, "<Q"),
    ord("U"): lambda r: r._push(r._counted("<B").decode("latin-1")),  # Python 2's strings
    ord("T"): lambda r: r._push(r._counted("<I").decode("latin-1")),
    ord("C"): lambda r: r._push(r._counted("<B")),
    ord("B"): lambda r: r._push(r._counted("<I")),
    ord("}"): lambda r: r._push({}),
    ord("]"): lambda r: r._push([]),
    ord(")"): lambda r: r._push(()),
    ord("t"): lambda r: r._push(tuple(r._since_mark())),
    0x85: lambda r: r._tuple(1),
    0x86: lambda r: r._tuple(2),
    0x87: lambda r: r._tuple(3),
    ord("a"): lambda r: r._append(r._pop(1)),
    ord("e"): lambda r: r._append(r._since_mark()),
    ord("s"): lambda r: r._set(r._pop(2)),
    ord("u"): lambda r: r._set(r._since_mark()),
    ord("c"): lambda r: r._global(r._line(), r._line()),
    0x93: _stack_global,
    ord("R"): PickleReader._reduce,
    ord("b"): PickleReader._build,
    ord("Q"): PickleReader._persistent,
    ord("q"): lambda r: r._memoize(r._number("<B")),
    ord("r"): lambda r: r._memoize(r._number("<I")),
    0x94: lambda r: r._memoize(len(r._memo)),
    ord("h"): lambda r: r._push(r._memo[r._number("<B")]),
    ord("j"): lambda r: r._push(r._memo[r._number("<I")]),
}
_UNSAFE = {
    ord("i"): "the construction of an object (INST)",
    ord("o"): "the construction of an object (OBJ)",
    0x81: "the construction of an object (NEWOBJ)",
    0x92: "the construction of an object (NEWOBJ_EX)",
    0x82: "a registered extension (EXT1)",
    0x83: "a registered extension (EXT2)",
    0x84: "a registered extension (EXT4)",
    ord("P"): "an object outside the pickle by a line of text (PERSID)",
}
