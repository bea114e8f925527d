from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.checkpoints.checkpoint import TensorInfo
from glimmer.checkpoints.safe_pickle import MAX_BYTES
from glimmer.checkpoints.torch_bin import TorchFile
from glimmer.errors import CheckpointError, MalformedCheckpointError, UnsafeCheckpointError
from tests.support.hf_folder import (
    ITEM_BYTES,
    NONE,
    REDUCE,
    TUPLE1,
    Part,
    Stored,
    dict_of,
    global_,
    legacy_bytes,
    legacy_file,
    number,
    ordered_dict,
    program,
    state_dict,
    stored,
    text,
    zip_bytes,
    zip_file,
)

NUMBERS = np.arange(24, dtype=np.float32)
KINDS = ("zip", "legacy")


def opened(tmp_path: Path, content: bytes) -> TorchFile:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    return TorchFile(path)


def refused(tmp_path: Path, content: bytes, *fragments: str) -> None:
    with pytest.raises(MalformedCheckpointError) as caught:
        opened(tmp_path, content)
    for fragment in ("pytorch_model.bin", *fragments):
        assert fragment in str(caught.value)


def file_of(kind: str, parts: Mapping[str, Part], storages: Mapping[str, np.ndarray]) -> bytes:
    """Tensors over storages that are given."""
    datas = {key: array.tobytes() for key, array in storages.items()}
    if kind == "zip":
        return zip_file(program(state_dict(parts)), datas)
    counted = {key: (storages[key].size, data) for key, data in datas.items()}
    return legacy_file(program(state_dict(parts, legacy=True)), counted)


def values(file: TorchFile, name: str) -> np.ndarray[Any, Any]:
    info = file.tensors[name]
    return file.read(name).view(info.dtype).reshape(info.shape)


@pytest.mark.parametrize("write", [zip_bytes, legacy_bytes])
def test_tensors_in_their_order(tmp_path: Path, write: Any) -> None:
    arrays = {
        "matrix": NUMBERS[:6].reshape(2, 3),
        "half": np.ones(3, np.float16),
        "int8": np.array([-1, 2], np.int8),
        "int64": np.array([[2**40]], np.int64),
        "scalar": np.float64(0.5),
        "empty": np.zeros((0, 4), np.float32),
        "bool": np.array([True, False]),
    }
    content = write({name: stored(array) for name, array in arrays.items()})
    file = opened(tmp_path, content)
    assert list(file.tensors) == list(arrays)
    for name, array in arrays.items():
        info = file.tensors[name]
        assert info == TensorInfo(name, array.shape, array.dtype.name, info.offset, array.nbytes)
        data = file.read(name)
        assert data.tobytes() == content[info.offset :][: info.size_bytes] == array.tobytes()
        assert not data.flags.writeable
        file.release(name)
    assert values(file, "matrix").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("write", [zip_bytes, legacy_bytes])
def test_bfloat16_is_told_apart(tmp_path: Path, write: Any) -> None:
    file = opened(tmp_path, write({"w": Stored("bfloat16", (2,), b"\x80\x3f\x00\x40")}))
    assert file.tensors["w"].dtype == "bfloat16"
    assert file.read("w").tobytes() == b"\x80\x3f\x00\x40"


VIEWS: dict[str, tuple[Part, np.ndarray[Any, Any]]] = {
    "transposed": (Part("0", "float32", (6, 4), (1, 6), 0, 24), NUMBERS.reshape(4, 6).T),
    "columns": (Part("0", "float32", (4, 2), (6, 1), 2, 24), NUMBERS.reshape(4, 6)[:, 2:4]),
    "every other": (Part("0", "float32", (12,), (2,), 1, 24), NUMBERS[1::2]),
    "permuted": (
        Part("0", "float32", (4, 2, 3), (1, 12, 4), 0, 24),
        NUMBERS.reshape(2, 3, 4).transpose(2, 0, 1),
    ),
    "rows": (Part("0", "float32", (2, 6), (6, 1), 12, 24), NUMBERS.reshape(4, 6)[2:]),
    "one element": (Part("0", "float32", (), (), 23, 24), NUMBERS[23]),
    "repeated": (Part("0", "float32", (3, 4), (0, 1), 0, 24), np.tile(NUMBERS[:4], (3, 1))),
    "strides of single rows say nothing": (
        Part("0", "float32", (1, 6, 1), (1 << 40, 1, 1 << 40), 0, 24),
        NUMBERS[:6].reshape(1, 6, 1),
    ),
    "nothing, somewhere": (Part("0", "float32", (4, 0), (1, 7), 24, 24), np.zeros((4, 0), "f4")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_a_storage(tmp_path: Path, name: str, kind: str) -> None:
    part, expected = VIEWS[name]
    file = opened(tmp_path, file_of(kind, {"w": part}, {"0": NUMBERS}))
    assert file.tensors["w"].shape == expected.shape
    assert file.tensors["w"].size_bytes == expected.nbytes
    np.testing.assert_array_equal(values(file, "w"), expected)
    file.release("w")
    np.testing.assert_array_equal(values(file, "w"), expected)


@st.composite
def parts(draw: st.DrawFn) -> Part:
    sizes = st.lists(st.integers(0, 4), max_size=4)
    shape = draw(sizes)
    strides = draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    dtype = draw(st.sampled_from(["float32", "int8", "int64", "float16"]))
    return Part("0", dtype, tuple(shape), tuple(strides), draw(st.integers(0, 30)), 24)


@given(parts(), st.sampled_from(KINDS))
def test_any_view_is_what_numpy_makes_of_it_or_an_error(
    tmp_path: Path, part: Part, kind: str
) -> None:
    assert part.strides is not None
    numbers = np.arange(24).astype(part.dtype)
    content = file_of(kind, {"w": part}, {"0": numbers})
    last = part.offset + sum((n - 1) * s for n, s in zip(part.shape, part.strides, strict=True))
    count = int(np.prod(part.shape))
    if count > 24 or (last >= 24 if count else part.offset > 24):
        refused(tmp_path, content, "'w'", "beyond its storage of 24 elements")
        return
    expected = np.ndarray(
        part.shape, part.dtype, numbers.tobytes() + bytes(999), part.offset * numbers.itemsize,
        [s * numbers.itemsize for s in part.strides],
    )  # fmt: skip
    np.testing.assert_array_equal(values(opened(tmp_path, content), "w"), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_tied_tensors_share_their_bytes(tmp_path: Path, kind: str) -> None:
    tied = {name: Part("0", "float32", (4, 6)) for name in ("embedding", "head")}
    file = opened(tmp_path, file_of(kind, tied, {"0": NUMBERS}))
    assert np.shares_memory(file.read("embedding"), file.read("head"))


def test_a_storage_that_is_a_view_of_another(tmp_path: Path) -> None:
    file = opened(
        tmp_path,
        file_of("legacy", {"w": Part("0", "float32", (4,), None, 2, 24, view=6)}, {"0": NUMBERS}),
    )
    np.testing.assert_array_equal(values(file, "w"), NUMBERS[8:12])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_weights_beside_a_training_state(tmp_path: Path, wrapper: str, kind: str) -> None:
    legacy = kind == "legacy"
    weights = state_dict({"w": Part("0", "float32", (2,))}, legacy)
    state = dict_of({"0": dict_of({"exp_avg": Part("1", "float32", (1,)).pickled(legacy)})})
    saved = {"step": number(7), wrapper: weights, "optimizer": dict_of({"state": state})}
    pickled, a, b = program(dict_of(saved)), NUMBERS[:2].tobytes(), NUMBERS[2:3].tobytes()
    file = opened(
        tmp_path,
        legacy_file(pickled, {"0": (2, a), "1": (1, b)})
        if legacy
        else zip_file(pickled, {"0": a, "1": b}),
    )
    assert list(file.tensors) == ["w"]
    assert file.read("w").tobytes() == a


def test_what_is_no_tensor_is_left_out(tmp_path: Path) -> None:
    items = {"w": Part("0", "int8", (1,)).pickled(False), "version": number(3), "name": text("x")}
    file = opened(tmp_path, zip_file(program(ordered_dict(items)), {"0": b"x"}))
    assert list(file.tensors) == ["w"]


@pytest.mark.parametrize(
    "pickled",
    [
        NONE,
        number(3),
        dict_of({}),
        dict_of({"a": number(1)}),
        dict_of({"1": dict_of({"w": Part("0", "int8", (1,)).pickled(False)})}),
        dict_of(
            {
                "model": state_dict({"w": Part("0", "int8", (1,))}),
                "module": state_dict({"w": Part("0", "int8", (1,))}),
            }
        ),
        b"}" + number(1) + Part("0", "int8", (1,)).pickled(False) + b"s",
    ],
)
def test_no_dictionary_of_tensors_or_more_than_one(tmp_path: Path, pickled: bytes) -> None:
    refused(tmp_path, zip_file(program(pickled), {"0": b"x"}), "dictionaries of tensors by name")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "part",
    [
        Part("0", "float32", (25,), num_elements=24),
        Part("0", "float32", (24,), offset=1, num_elements=24),
        Part("0", "float32", (4, 6), (6, 2), num_elements=24),
        Part("0", "float32", (2,), (1 << 47,), num_elements=24),
        Part("0", "float32", (1,), offset=(1 << 48) - 1, num_elements=24),
        Part("0", "float32", (0,), offset=1 << 40, num_elements=24),
        Part("0", "float32", (1 << 47, 0), (0, 0), offset=25, num_elements=24),
        Part("0", "float32", (1 << 40,), (0,), num_elements=24),
        Part("0", "float32", ((1 << 48) - 1,) * 8, (0,) * 8, num_elements=24),
    ],
)
def test_a_tensor_beyond_its_storage(tmp_path: Path, part: Part, kind: str) -> None:
    content = file_of(kind, {"some.weight": part}, {"0": NUMBERS})
    refused(tmp_path, content, "'some.weight'", "beyond its storage of 24 elements")


# The zip archive


def zip_of(entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return made.getvalue()


PICKLED = program(state_dict({"w": Part("0", "int8", (4,))}))
ZIPPED = zip_file(PICKLED, {"0": b"abcd"})


@pytest.mark.parametrize("root", ["archive", "pytorch_model", "модель"])
def test_the_archive_has_any_name(tmp_path: Path, root: str) -> None:
    file = opened(tmp_path, zip_file(PICKLED, {"0": b"abcd"}, root=root))
    assert file.read("w").tobytes() == b"abcd"


def test_an_archive_with_zip64_fields(tmp_path: Path) -> None:
    file = opened(tmp_path, zip_file(PICKLED, {"0": b"abcd"}, zip64=True))
    assert file.read("w").tobytes() == b"abcd"


def test_an_archive_of_before_byte_order_was_told(tmp_path: Path) -> None:
    file = opened(tmp_path, zip_file(PICKLED, {"0": b"abcd"}, byteorder=None))
    assert file.read("w").tobytes() == b"abcd"


@pytest.mark.parametrize("order", [b"big", b"", b"little, and then some"])
def test_big_endian_is_refused(tmp_path: Path, order: bytes) -> None:
    refused(tmp_path, zip_file(PICKLED, {"0": b"abcd"}, byteorder=order), "big endian")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_entry_is_refused(tmp_path: Path, compression: int) -> None:
    content = zip_file(PICKLED, {"0": b"abcd"}, compression=compression)
    refused(tmp_path, content, "compressed or encrypted")


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    refused(tmp_path, zip_of({"word/document.xml": b"<w/>"}), "0 entries data.pkl")
    refused(tmp_path, zip_of({"data.pkl": PICKLED}), "0 entries data.pkl")
    refused(tmp_path, zip_of({"a/data.pkl": b"", "b/data.pkl": b""}), "2 entries data.pkl")


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a/data.pkl", PICKLED)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/data.pkl", program(NONE))
    refused(tmp_path, made.getvalue(), "two entries")


def test_a_storage_without_an_entry(tmp_path: Path) -> None:
    refused(tmp_path, zip_file(PICKLED), "the storage '0' has no entry")


def test_a_storage_that_is_too_short(tmp_path: Path) -> None:
    refused(tmp_path, zip_file(PICKLED, {"0": b"abc"}), "the storage '0' has 3 bytes")


def test_a_pickle_that_is_too_long(tmp_path: Path) -> None:
    content = zip_file(PICKLED + bytes(MAX_BYTES), {"0": b"abcd"})
    refused(tmp_path, content, f"at most {MAX_BYTES} are read")


def test_a_key_is_no_path(tmp_path: Path) -> None:
    pickled = program(state_dict({"w": Part("../../secret", "int8", (4,))}))
    refused(tmp_path, zip_of({"a/data.pkl": pickled, "secret": b"abcd"}), "has no entry")


def patched(content: bytes, signature: bytes, field: int, value: int, size: int) -> bytes:
    """``content`` with one field of the last record that begins with ``signature`` overwritten."""
    place = content.rindex(signature) + field
    return content[:place] + value.to_bytes(size, "little") + content[place + size :]


@pytest.mark.parametrize("offset", [0, 1, 1 << 20, (1 << 32) - 2])
def test_an_entry_that_is_elsewhere_than_it_claims(tmp_path: Path, offset: int) -> None:
    # The last entry of the directory is the storage's. At 0 lies another entry, of other bytes.
    content = patched(ZIPPED, b"PK\x01\x02", 42, offset, 4)
    try:
        file = opened(tmp_path, content)
    except MalformedCheckpointError:
        return
    assert len(file.read("w")) == 4


def test_an_entry_longer_than_the_file(tmp_path: Path) -> None:
    content = patched(ZIPPED, b"PK\x01\x02", 24, 1 << 30, 4)
    refused(tmp_path, content, "'archive/data/0' ends beyond the file")


def test_a_directory_that_puts_entries_before_the_file(tmp_path: Path) -> None:
    # The offset of the directory is too large: zipfile moves every entry to the front by as much.
    end = ZIPPED.rindex(b"PK\x05\x06")
    (start,) = struct.unpack_from("<I", ZIPPED, end + 16)
    for shift in (1, 40, 1 << 20):
        refused(tmp_path, patched(ZIPPED, b"PK\x05\x06", 16, start + shift, 4))


def test_every_truncation_of_an_archive_is_refused(tmp_path: Path) -> None:
    for length in range(4, len(ZIPPED)):
        refused(tmp_path, ZIPPED[:length])


# The older file

LEGACY = legacy_file(
    program(state_dict({"w": Part("0", "int8", (4,))}, legacy=True)), {"0": (4, b"abcd")}
)


def test_every_truncation_of_an_older_file_is_refused(tmp_path: Path) -> None:
    assert opened(tmp_path, LEGACY).read("w").tobytes() == b"abcd"
    for length in range(1, len(LEGACY)):
        refused(tmp_path, LEGACY[:length])


def test_an_older_file_of_big_endian_numbers(tmp_path: Path) -> None:
    refused(tmp_path, legacy_file(PICKLED, little_endian=False), "big endian")


def test_an_older_file_of_other_numbers(tmp_path: Path) -> None:
    refused(tmp_path, program(number(1)) * 5, "numbers that such a file begins with")


@pytest.mark.parametrize(
    ("storages", "fragment"),
    [
        ({"0": (5, b"abcd")}, "'0' ends beyond the file"),
        ({"0": ((1 << 64) - 1, b"abcd")}, "'0' ends beyond the file"),
        ({"1": (4, b"abcd")}, "a storage that no tensor uses"),
        ({}, "tensor 'w' has no storage"),
    ],
)
def test_storages_that_do_not_fit(
    tmp_path: Path, storages: Mapping[str, tuple[int, bytes]], fragment: str
) -> None:
    pickled = program(state_dict({"w": Part("0", "int8", (4,))}, legacy=True))
    refused(tmp_path, legacy_file(pickled, storages), fragment)


def test_an_older_file_without_its_list_of_storages(tmp_path: Path) -> None:
    head = b"".join(
        map(
            program,
            [number(0x1950A86A20F9469CFC6C), number(1001), dict_of({"little_endian": b"\x88"})],
        )
    )
    refused(tmp_path, head + PICKLED + program(NONE), "list of its storages")
    refused(tmp_path, head + PICKLED + program(b"](" + number(1) + b"e"), "no tensor uses")


@pytest.mark.parametrize("kind", KINDS)
def test_code_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "canary"
    attack = global_("posix", "system") + text(f"touch {path}") + TUPLE1 + REDUCE
    pickled = program(dict_of({"w": attack}))
    content = zip_file(pickled) if kind == "zip" else legacy_file(pickled)
    with pytest.raises(UnsafeCheckpointError, match=r"pytorch_model\.bin.*'posix\.system'"):
        opened(tmp_path, content)
    assert not path.exists()


@given(
    st.sampled_from([ZIPPED, LEGACY]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damage_is_survived(tmp_path: Path, content: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(content)
    for place, byte in changes:
        data[place % len(data)] = byte
    try:
        file = opened(tmp_path, bytes(data))
    except CheckpointError:
        return
    for name, tensor in file.tensors.items():
        assert len(file.read(name)) == tensor.size_bytes


# What PyTorch itself writes


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_files_of_pytorch(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    module = torch.nn.Linear(3, 2)
    tensors = {
        "plain": base,
        "transposed": base.T,
        "rows": base[2:],
        "columns": base[:, 1:3],
        "every other": base.flatten()[::2],
        "repeated": torch.arange(3.0).expand(1, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(3, 0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        **{
            name: torch.arange(5).to(getattr(torch, name))
            for name in ITEM_BYTES
        },
        **module.state_dict(),
    }  # fmt: skip
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    file = TorchFile(path)
    assert list(file.tensors) == list(tensors)
    for name, tensor in tensors.items():
        info = file.tensors[name]
        assert (info.shape, info.dtype) == (tuple(tensor.shape), str(tensor.dtype)[6:]), name
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        np.testing.assert_array_equal(file.read(name), raw, err_msg=name)
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=zipped)
    assert list(TorchFile(path).tensors) == ["weight", "bias"]


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pytorch_reads_what_the_tests_write(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    views = {name: part for name, (part, _) in VIEWS.items() if "strides" not in name}
    path.write_bytes(file_of("zip" if zipped else "legacy", views, {"0": NUMBERS}))
    read = torch.load(path, weights_only=True)
    for name in views:
        np.testing.assert_array_equal(read[name].numpy(), VIEWS[name][1], err_msg=name)
