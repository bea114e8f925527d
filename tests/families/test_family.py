"""Recognition: exactly one family, or an error that shows the evidence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType

import pytest

from glimmer.checkpoints import open_checkpoint
from glimmer.errors import InvalidParameterError, UnknownFamilyError
from glimmer.families import all_families, family, recognise
from tests.support.tiny_gguf import tiny_architecture, tiny_gguf


def test_every_weight_of_every_family_has_a_name() -> None:
    for found in all_families().values():
        for name in tiny_architecture(tied_head=False).weight_shapes():
            assert found.weight_map.file_name(name)


def test_exactly_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(tiny_gguf(tmp_path / "a.gguf")) as checkpoint:
        assert recognise(checkpoint).name == "smollm"
        assert recognise(checkpoint, "smollm").name == "smollm"
        with pytest.raises(InvalidParameterError, match="no family 'other'"):
            recognise(checkpoint, "other")
        twin = dataclasses.replace(recognise(checkpoint), name="twin")
        both = MappingProxyType({**all_families(), "twin": twin})
        monkeypatch.setattr(family, "all_families", lambda: both)
        with pytest.raises(UnknownFamilyError, match="Several families") as caught:
            recognise(checkpoint)
        assert "smollm: GGUF architecture llama" in str(caught.value)
