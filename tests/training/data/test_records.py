"""Files as records: where each begins, and what is said of the broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimmer.errors import ModelNotFoundError, TrainingDataError
from glimmer.training.data import records
from glimmer.training.data.records import read_records

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=6)


def has_surrogate(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


@settings(max_examples=60)
@given(RECORDS, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
def test_what_is_written_is_read(
    tmp_path: Path, values: list[object], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    good = [value for value in values if not has_surrogate(value)]
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text(
        "\n".join(json.dumps(v, ensure_ascii=ascii_only) for v in good) + "\n", encoding="utf-8"
    )
    whole.write_text(json.dumps(good, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    before = records._CHUNK_BYTES
    records._CHUNK_BYTES = chunk  # a value may be cut anywhere
    try:
        if good:
            assert [r.value for r in read_records(lines)] == good
            assert [r.line for r in read_records(lines)] == list(range(1, len(good) + 1))
        assert [r.value for r in read_records(whole)] == good
    finally:
        records._CHUNK_BYTES = before


def test_lines_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}\n{"a": 3}')
    assert [(r.line, r.number, r.value["a"]) for r in read_records(path)] == [
        (1, 1, 1), (4, 2, 2), (5, 3, 3),
    ]  # fmt: skip
    path.write_text('[\n {"a":\n 1},\n\n {"a": 2}, {"a": 3}\n]\n')
    assert [(r.line, r.number, r.value["a"]) for r in read_records(path)] == [
        (2, 1, 1), (5, 2, 2), (5, 3, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": 1', "not JSON"),
        (b'["a"]', "it is a list"),
        (b"7", "it is a number"),
        (b"null", "it is null"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at position 7"),
        (b'{"a": "\\ud83d"}', "half of a surrogate"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_broken_lines_are_told_and_the_others_read(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    first, broken, last = read_records(path)
    assert (first.value, last.value) == ({"a": 1}, {"a": 3})
    assert broken.line == 2
    assert said in (broken.problem or "")


def test_a_line_beyond_all_measure_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(records, "_CHUNK_BYTES", 30)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "' + "x" * 500 + '"}\n{"a": 2}\n')
    large, good = read_records(path)
    assert "larger than" in (large.problem or "")
    assert (good.line, good.value) == (2, {"a": 2})
    path.write_text('[{"a": "' + "x" * 500 + '"}]')
    with pytest.raises(TrainingDataError, match="line 1: the record that begins here is larger"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b'[{"a": 1},\n{"b": ', "line 2: the file ends within"),
        (b'[{"a": "x}]', "line 1: the file ends within"),
        (b'[{"a": 1}]\n{"a": 2}', "line 2: the list has ended"),
    ],
)
def test_files_that_are_no_list_of_records(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(TrainingDataError, match=said):
        list(read_records(path))


def test_an_empty_list_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(" [ ] \n")
    assert list(read_records(path)) == []
    path.write_text('[{"a": 1},]')
    good, broken = read_records(path)
    assert good.problem is None
    assert "not JSON" in (broken.problem or "")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"There is no file .*none\.jsonl of training data"
    ):
        list(read_records(tmp_path / "none.jsonl"))
    with pytest.raises(TrainingDataError, match="cannot be read: Is a directory"):
        list(read_records(tmp_path))


def test_a_large_file_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is alive at any time is a record and a chunk, however many records there are."""
    import tracemalloc

    monkeypatch.setattr(records, "_CHUNK_BYTES", 1 << 14)
    record = json.dumps({"text": "x" * 1000})
    for name, parts in (("a.jsonl", ("", "\n", "\n")), ("a.json", ("[", ",\n", "]"))):
        path = tmp_path / name
        path.write_text(parts[0] + parts[1].join([record] * 8000) + parts[2])
        assert path.stat().st_size > 8_000_000
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_records(path)) == 8000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000


def test_a_list_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small records in one chunk: no record is paid for with the rest of the chunk."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"i": i} for i in range(20_000)]))
    copied = 0
    take = records._Window.take

    def counted(self: records._Window, length: int) -> bytes:
        nonlocal copied
        before = self.data
        taken = take(self, length)
        copied += len(taken) + (0 if self.data is before else len(self.data))
        return taken

    monkeypatch.setattr(records._Window, "take", counted)
    assert [record.value["i"] for record in read_records(path)] == list(range(20_000))
    assert copied < 2 * path.stat().st_size
