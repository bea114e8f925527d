from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glimmer.checkpoints.metadata import get, require, require_list
from glimmer.errors import MalformedCheckpointError, TokenizerError

PATH = Path("model.gguf")
METADATA: dict[str, Any] = {
    "int": 3,
    "bool": True,
    "float": 0.5,
    "str": "text",
    "list": ["a", "b"],
    "mixed": ["a", 1],
    "long": "x" * 1000,
}


def test_a_value_of_the_right_kind_is_returned() -> None:
    assert require(METADATA, "int", int, PATH) == 3
    assert require(METADATA, "bool", bool, PATH) is True
    assert require(METADATA, "float", float, PATH) == 0.5
    assert require_list(METADATA, "list", str, PATH) == ["a", "b"]


def test_get_falls_back_only_where_the_key_is_absent() -> None:
    assert get(METADATA, "absent", int, 7, PATH) == 7
    assert get(METADATA, "int", int, 7, PATH) == 3
    with pytest.raises(MalformedCheckpointError, match=r"'str' holds str 'text'; expected int"):
        get(METADATA, "str", int, 7, PATH)


@pytest.mark.parametrize(("key", "kind"), [("bool", int), ("int", float), ("int", bool)])
def test_related_kinds_are_not_mixed_up(key: str, kind: type) -> None:
    with pytest.raises(MalformedCheckpointError, match=f"'{key}'.*expected {kind.__name__}"):
        require(METADATA, key, kind, PATH)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(MalformedCheckpointError, match=r"model\.gguf: .*no key 'absent'"):
        require(METADATA, "absent", str, PATH)


def test_a_wrong_item_is_named() -> None:
    with pytest.raises(MalformedCheckpointError, match=r"item 1 of metadata key 'mixed' is int 1"):
        require_list(METADATA, "mixed", str, PATH)


def test_the_caller_chooses_the_error() -> None:
    with pytest.raises(TokenizerError, match="absent"):
        require(METADATA, "absent", str, PATH, TokenizerError)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(MalformedCheckpointError) as caught:
        require(METADATA, "long", int, PATH)
    assert len(str(caught.value)) < 150
