"""Damaged GGUF files are refused by name; nothing else ever happens."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimmer.checkpoints import GGUFCheckpoint
from glimmer.checkpoints.gguf_header import read_header
from glimmer.errors import (
    GlimmerError,
    MalformedCheckpointError,
    UnknownFormatError,
    UnsupportedTensorTypeError,
)
from tests.support.gguf_writer import TensorEntry, gguf_bytes, header, key, padded, string

PATH = Path("model.gguf")
F32, Q4_0 = 0, 2
U64_MAX = 2**64 - 1


def raw_key(name: str, type_id: int, payload: bytes) -> bytes:
    return string(name) + struct.pack("<I", type_id) + payload


def with_tensors(entries: Sequence[TensorEntry], data_bytes: int, alignment: int = 32) -> bytes:
    return padded(header((), entries), alignment) + bytes(data_bytes)


def f32(name: str | bytes, dims: Sequence[int], offset: int = 0) -> TensorEntry:
    return TensorEntry(name, dims, F32, offset)


# id: (file, fragments that the message must hold)
MALFORMED: dict[str, tuple[bytes, list[str]]] = {
    "magic only": (b"GGUF", ["the version", "truncated"]),
    "no counts": (b"GGUF" + struct.pack("<I", 3), ["number of tensors", "truncated"]),
    "too many tensors": (header(num_tensors=U64_MAX), ["number of tensors", str(U64_MAX)]),
    "too many keys": (header(num_keys=1 << 40), ["number of metadata keys", str(1 << 40)]),
    "one key too many": (header([key("a", "x" * 20)], num_keys=2), ["metadata key 1"]),
    "one tensor too many": (
        header((), [f32("a" * 40, (1,))], num_tensors=2),
        ["tensor 1", "truncated"],
    ),
    "key longer than the file": (
        header([struct.pack("<Q", 1 << 50) + bytes(32)]),
        ["name of metadata key 0", str(1 << 50)],
    ),
    "key longer than allowed": (header([key("k" * 70000, 1)]), ["metadata key 0", "70000"]),
    "key that is empty": (header([key("", 1)]), ["metadata key 0", "empty"]),
    "key not UTF-8": (header([key(b"a\xff", 1)]), ["metadata key 0", "UTF-8"]),
    "key twice": (header([key("a", 1), key("a", 2)]), ["'a'", "twice"]),
    "value type unknown": (header([raw_key("a", 13, bytes(8))]), ["'a'", "13"]),
    "value cut": (header([raw_key("some.key", 10, bytes(4))]), ["'some.key'", "truncated"]),
    "boolean neither": (header([raw_key("a", 7, b"\x02")]), ["'a'", "boolean 2"]),
    "boolean in array": (
        header([raw_key("a", 9, struct.pack("<IQ", 7, 2) + b"\x01\x05")]),
        ["'a'", "boolean 5"],
    ),
    "string cut": (
        header([raw_key("a", 8, struct.pack("<Q", 99) + b"short")]),
        ["'a'", "99"],
    ),
    "string not UTF-8": (
        header([raw_key("a.b", 8, string(b"ok\xc3("))]),
        ["'a.b'", "UTF-8"],
    ),
    "token not UTF-8": (
        header([raw_key("toks", 9, struct.pack("<IQ", 8, 2) + string("ok") + string(b"\xe4\xbd"))]),
        ["item 1", "'toks'", "UTF-8"],
    ),
    "token cut": (
        header([raw_key("toks", 9, struct.pack("<IQ", 8, 2) + string("ok") + bytes(7))]),
        ["'toks'", "truncated"],
    ),
    "token longer than the file": (
        header([raw_key("toks", 9, struct.pack("<IQQ", 8, 2, U64_MAX) + bytes(99))]),
        ["item 0", "'toks'", "truncated"],
    ),
    "array of arrays": (header([raw_key("a", 9, struct.pack("<IQ", 9, 1))]), ["'a'", "array"]),
    "array item type unknown": (
        header([raw_key("a", 9, struct.pack("<IQ", 99, 1))]),
        ["'a'", "99"],
    ),
    "array longer than the file": (
        header([raw_key("a", 9, struct.pack("<IQ", 12, 1 << 61) + bytes(64))]),
        ["'a'", str(1 << 61)],
    ),
    "alignment zero": (header([key("general.alignment", 0)]), ["general.alignment", "is 0"]),
    "alignment odd": (header([key("general.alignment", 48)]), ["general.alignment", "48"]),
    "alignment absurd": (header([key("general.alignment", 1 << 30)]), ["general.alignment"]),
    "alignment text": (header([key("general.alignment", "32")]), ["general.alignment", "'32'"]),
    "alignment true": (header([key("general.alignment", True)]), ["general.alignment", "True"]),
    "tensor without name": (with_tensors([f32("", (1,))], 32), ["tensor 0", "empty"]),
    "tensor name not UTF-8": (with_tensors([f32(b"\x80", (1,))], 32), ["tensor 0", "UTF-8"]),
    "tensor twice": (with_tensors([f32("w", (1,)), f32("w", (1,), 32)], 64), ["'w'", "twice"]),
    "no dimensions": (with_tensors([f32("w", ())], 32), ["'w'", "0 dimensions"]),
    "five dimensions": (with_tensors([f32("w", (1,) * 5)], 32), ["'w'", "5 dimensions"]),
    "dimensions absurd": (
        header((), [f32("w", (1,))])[:-24] + struct.pack("<I", 1 << 31) + bytes(64),
        ["'w'", f"{1 << 31} dimensions"],
    ),
    "dimension zero": (with_tensors([f32("w", (4, 0))], 32), ["'w'", "[0, 4]"]),
    "dimensions overflow": (
        with_tensors([f32("w", (1 << 32, 1 << 32))], 32),
        ["'w'", "impossible shape"],
    ),
    "row not whole blocks": (
        with_tensors([TensorEntry("w", (33, 32), Q4_0, 0)], 1024),
        ["'w'", "q4_0", "33", "32"],
    ),
    "offset misaligned": (with_tensors([f32("w", (1,), 4)], 64), ["'w'", "offset 4", "32"]),
    "offset beyond the file": (with_tensors([f32("w", (1,), 1 << 40)], 64), ["'w'", "truncated"]),
    "offset overflows": (with_tensors([f32("w", (1,), U64_MAX - 31)], 64), ["'w'", "truncated"]),
    "data cut": (with_tensors([f32("a", (8,)), f32("w", (9,), 32)], 64), ["'w'", "truncated"]),
    "data absent": (header((), [f32("w", (1,))]), ["'w'", "truncated"]),
    "overlap": (
        with_tensors([f32("a", (16,)), f32("b", (8,), 32)], 64),
        ["'a'", "'b'", "overlap"],
    ),
    "same place": (with_tensors([f32("a", (8,)), f32("b", (8,))], 32), ["'a'", "'b'", "overlap"]),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_fault_is_named(fault: str) -> None:
    content, fragments = MALFORMED[fault]
    with pytest.raises(MalformedCheckpointError) as caught:
        read_header(content, PATH)
    message = str(caught.value)
    assert message.startswith("model.gguf: ")
    for fragment in fragments:
        assert fragment in message


def test_an_array_that_fits_the_file_may_still_be_too_long() -> None:
    count = (1 << 24) + 1
    content = header([raw_key("a", 9, struct.pack("<IQ", 0, count) + bytes(count))])
    with pytest.raises(MalformedCheckpointError, match=f"'a' has {count} items; at most {1 << 24}"):
        read_header(content, PATH)


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (header(version=1), ["version 1", "2 and 3"]),
        (header(version=4), ["version 4", "2 and 3"]),
        (header(version=0), ["big-endian"]),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), ["big-endian"]),
        (b"GGUL" + bytes(64), ["not a GGUF file", "47 47 55 4c"]),
        (b"GG", ["not a GGUF file"]),
        (header([key("split.count", np.uint16(3))]), ["3 parts", "llama-gguf-split --merge"]),
    ],
)
def test_a_gguf_that_is_not_read_is_refused_by_name(content: bytes, fragments: list[str]) -> None:
    with pytest.raises(UnknownFormatError) as caught:
        read_header(content, PATH)
    for fragment in ["model.gguf", *fragments]:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("type_id", "fragments"),
    [(4, ["q4_2", "withdrawn"]), (31, ["q4_0_4_4"]), (43, ["43", "newer"]), (U64_MAX >> 32, [])],
)
def test_a_tensor_type_without_known_layout_is_refused(type_id: int, fragments: list[str]) -> None:
    content = with_tensors([TensorEntry("blk.0.w", (32,), type_id, 0)], 64)
    with pytest.raises(UnsupportedTensorTypeError) as caught:
        read_header(content, PATH)
    for fragment in ["model.gguf", "'blk.0.w'", *fragments]:
        assert fragment in str(caught.value)


VALID = gguf_bytes(
    {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.block_count": 2,
        "llama.eps": 1e-5,
        "flag": True,
        "tokens": ["<s>", "a", "Ġb", "你"],
        "types": np.array([3, 1, 1, 1], np.int32),
        "flags": np.array([True, False]),
    },
    {
        "token_embd.weight": ("q4_0", (2, 64), bytes(range(72))),
        "norm.weight": ("float32", (8,), bytes(32)),
        "out.weight": ("q4_k", (1, 256), bytes(144)),
    },
)


def check(content: bytes) -> None:
    """Either a consistent header or an error of ours."""
    try:
        parsed = read_header(content, PATH)
    except GlimmerError:
        return
    places = sorted((tensor.offset, tensor.size_bytes) for tensor in parsed.tensors.values())
    end = 0
    for offset, size_bytes in places:
        assert end <= offset
        end = offset + size_bytes
    assert end <= len(content)


def test_the_undamaged_file_is_read() -> None:
    assert list(read_header(VALID, PATH).tensors) == [
        "token_embd.weight",
        "norm.weight",
        "out.weight",
    ]


def test_every_truncation_is_refused() -> None:
    data_end = max(t.offset + t.size_bytes for t in read_header(VALID, PATH).tensors.values())
    for length in range(data_end):
        with pytest.raises((MalformedCheckpointError, UnknownFormatError)):
            read_header(VALID[:length], PATH)


def flipped(flips: Sequence[tuple[int, int]]) -> bytes:
    content = bytearray(VALID)
    for position, bit in flips:
        content[position] ^= 1 << bit
    return bytes(content)


positions = st.integers(0, len(VALID) - 1)
bit_flips = st.lists(st.tuples(positions, st.integers(0, 7)), min_size=1, max_size=4)
absurd = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, U64_MAX])
numbers = st.one_of(absurd, st.integers(0, U64_MAX))


def overwritten(position: int, number: int, size: int) -> bytes:
    stored = number.to_bytes(8, "little")[:size]
    return (VALID[:position] + stored + VALID[position + size :])[: len(VALID)]


@given(bit_flips)
def test_flipped_bits_are_survived(flips: list[tuple[int, int]]) -> None:
    check(flipped(flips))


@given(positions, numbers, st.sampled_from([1, 4, 8]))
def test_absurd_numbers_are_survived(position: int, number: int, size: int) -> None:
    check(overwritten(position, number, size))


@given(st.binary(max_size=300))
def test_noise_after_the_magic_is_survived(noise: bytes) -> None:
    check(b"GGUF" + struct.pack("<I", 3) + noise)


@pytest.mark.slow
@settings(max_examples=20_000)
@given(bit_flips, positions, numbers, st.sampled_from([1, 4, 8]), st.booleans())
def test_much_damage_is_survived(
    flips: list[tuple[int, int]], position: int, number: int, size: int, cut: bool
) -> None:
    check(flipped(flips))
    content = overwritten(position, number, size)
    check(content[: max(flips)[0]] if cut else content)


def test_every_byte_set_to_extremes_is_survived() -> None:
    for position in range(len(VALID)):
        for number in (0x00, 0x7F, 0x80, 0xFF):
            check(overwritten(position, number, 1))


def test_a_damaged_file_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(VALID[:-64])
    with pytest.raises(MalformedCheckpointError, match=r"cut\.gguf"):
        GGUFCheckpoint(path)
    path.unlink()
