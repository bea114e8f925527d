"""The linears of a network as training programs name them, and the weights that each holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from glimmer.architecture import Architecture
from glimmer.errors import MalformedCheckpointError, UnsupportedArchitectureError
from glimmer.families import Family
from glimmer.families.weight_map import Layout, RowRange

# No linears, or not ones that LoRA is put on.
_EXCLUDED = ("embedding.weight", "router.weight", "prefix_keys.weight", "prefix_values.weight")
_MOST_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Part:
    """One weight of a module: its canonical name without ".weight", and its rows; None for all."""

    name: str
    rows: tuple[RowRange, ...] | None


@dataclass(frozen=True, slots=True)
class Module:
    """A linear, ``[num_rows, num_columns]``."""

    name: str
    num_rows: int
    num_columns: int
    parts: tuple[Part, ...]


def find_modules(
    family: Family, architecture: Architecture, wanted: Collection[str], what: str
) -> Mapping[str, Module]:
    """The modules of these names, in whichever layout of the family has them all.

    Raises:
        MalformedCheckpointError: there is none; ``what`` is whose names they are.
        UnsupportedArchitectureError: one is a head that is the embedding.
    """
    candidates = [
        _modules(layout, architecture) for layout in family.weight_map.candidates("folder")
    ]
    if not candidates:
        raise MalformedCheckpointError(
            f"{what}: models of the {family.name} family come as GGUF alone, so there are no names "
            "that an adapter could have."
        )

    def closeness(modules: Mapping[str, Module]) -> tuple[int, int]:
        words = {word for name in modules for word in name.split(".")}
        alike = sum(word in words for name in wanted for word in name.split("."))
        return sum(name in modules for name in wanted), alike

    if architecture.tied_head and (tied := _heads(family).intersection(wanted)):
        raise UnsupportedArchitectureError(
            f"{what} has a part for {min(tied)!r:.200}, but in this network the head is the "
            "embedding once more, which takes no adapter here. Train again without it in "
            "target_modules."
        )
    modules = max(candidates, key=closeness)
    if unknown := sorted(name for name in wanted if name not in modules):
        raise MalformedCheckpointError(
            f"{what} has a part for {unknown[0]!r:.200}, which is no linear of this network "
            f"({family.name}, {architecture.num_layers} layers). It has {_shown(modules)}. The "
            "adapter was trained on another network."
        )
    return {name: modules[name] for name in wanted}


def _modules(layout: Layout, architecture: Architecture) -> dict[str, Module]:
    found: dict[str, list[tuple[Part, tuple[int, ...]]]] = {}
    for name, shape in architecture.weight_shapes().items():
        if len(shape) != 2 or name.endswith(_EXCLUDED):
            continue
        for piece in layout.pieces_of(name)[:1]:
            if not piece.stacked:
                rows = piece.row_ranges(architecture, name)
                part = Part(name.removesuffix(".weight"), rows)
                found.setdefault(piece.tensor.removesuffix(".weight"), []).append((part, shape))
    return {
        module: Module(
            module,
            max(part.rows[-1][1] if part.rows else shape[0] for part, shape in parts),
            parts[0][1][1],
            tuple(part for part, _ in parts),
        )
        for module, parts in found.items()
    }


def _heads(family: Family) -> set[str]:
    """What the head is called, in any layout."""
    layouts = list(family.weight_map.candidates("folder"))
    heads = {piece.tensor for layout in layouts for piece in layout.pieces_of("head.weight")}
    heads |= {name for layout in layouts for name in layout.copies}
    return {name.removesuffix(".weight") for name in heads}


def _shown(modules: Iterable[str]) -> str:
    """Those of the first layer, and whatever stands beside the layers."""
    names = list(modules)
    first = [n for n in names if ".layers." not in n or ".layers.0." in n]
    shown = ", ".join((first or names)[:_MOST_SHOWN])
    return shown + (" ..." if len(first or names) > _MOST_SHOWN else "")
