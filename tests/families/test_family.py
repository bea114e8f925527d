"""Recognition: exactly one family, or an error that shows the evidence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType

import pytest

from glimmer.checkpoints import open_checkpoint
from glimmer.errors import InvalidParameterError, UnknownFamilyError
from glimmer.families import all_families, family, recognise
from tests.support import families
from tests.support.tiny_gguf import tiny_gguf


@pytest.mark.parametrize("name", all_families())
def test_every_layout_has_a_place_for_every_weight(name: str) -> None:
    found = all_families()[name]
    architecture = families.tiny_architecture(name)
    for layout in found.weight_map.layouts:
        for weight in architecture.weight_shapes():
            assert layout.pieces_of(weight), f"{layout.name} has no {weight}"


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
