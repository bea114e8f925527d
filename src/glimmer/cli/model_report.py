"""A model's summary as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from glimmer.cli.quantities import show_bytes, show_count
from glimmer.cli.terminal import printable

if TYPE_CHECKING:
    from glimmer import ModelSummary

# Vocabularies and the like: their length tells more than their content.
_LONGEST_LIST = 16
_LONGEST_TEXT = 72


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that running a model takes; None for what cannot be told."""

    weights_bytes: int
    """As they are stored."""
    ctx: int | None
    kv_cache_bytes: int | None
    """Of float16 keys and values for one conversation of ``ctx`` tokens."""
    total_bytes: int | None
    available_bytes: int | None


def plan_memory(summary: ModelSummary, ctx: int | None, available: int | None) -> MemoryPlan:
    weights = sum(summary.weights_bytes_by_dtype.values())
    if ctx is None and summary.architecture is not None:
        ctx = summary.architecture.max_position
    per_token = summary.kv_bytes_per_token
    kv_cache = per_token * ctx if per_token is not None and ctx is not None else None
    total = weights + kv_cache if kv_cache is not None else None
    return MemoryPlan(weights, ctx, kv_cache, total, available)


def to_json(summary: ModelSummary, memory: MemoryPlan, *, tensors: bool) -> dict[str, Any]:
    """Everything; lists of the metadata that are long are given by their length."""
    network = summary.architecture
    report: dict[str, Any] = {
        "name": summary.name,
        "path": str(summary.path),
        "format": summary.format,
        "family": summary.family,
        "runnable": summary.runnable,
        "why_not": summary.why_not,
        "num_parameters": network.num_parameters if network else None,
        "architecture": asdict(network) if network else None,
        "metadata": {key: _brief(value) for key, value in summary.metadata.items()},
        "tensors_by_dtype": {
            dtype: {"count": count, "size_bytes": size}
            for dtype, (count, size) in _by_dtype(summary).items()
        },
        "memory": asdict(memory),
    }
    if tensors:
        report["tensors"] = [asdict(tensor) for tensor in summary.tensors.values()]
    return report


def to_tables(summary: ModelSummary, memory: MemoryPlan, *, tensors: bool) -> Iterator[Table]:
    network = summary.architecture
    yield _facts(
        "Model",
        {
            "name": summary.name,
            "path": summary.path,
            "format": summary.format,
            "family": summary.family or "not recognised",
            "parameters": show_count(network.num_parameters) if network else "-",
            "runs here": "yes" if summary.runnable else f"no: {summary.why_not}",
        },
    )
    if network is not None:
        yield _facts("Architecture", _flat(asdict(network)))
    if tokenizer := {key: v for key, v in summary.metadata.items() if "token" in key}:
        yield _facts("Tokenizer", {key: _brief_text(value) for key, value in tokenizer.items()})
    yield _tensor_types(summary)
    yield _memory(memory)
    if tensors:
        yield _tensor_list(summary)


def _facts(title: str, facts: Mapping[str, object]) -> Table:
    table = _table(title, "", "")
    table.show_header = False
    for name, value in facts.items():
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        table.add_row(Text(printable(name)), Text(printable(shown), overflow="fold"))
    return table


def _memory(memory: MemoryPlan) -> Table:
    sizes = {
        "weights, as stored": memory.weights_bytes,
        f"KV cache, {memory.ctx} tokens": memory.kv_cache_bytes,
        "together": memory.total_bytes,
        "available now": memory.available_bytes,
    }
    shown: dict[str, object] = {
        name: show_bytes(size) for name, size in sizes.items() if size is not None
    }
    if memory.total_bytes is not None and memory.available_bytes is not None:
        shown["fits"] = "yes" if memory.total_bytes <= memory.available_bytes else "no"
    return _facts("Memory", shown)


def _tensor_types(summary: ModelSummary) -> Table:
    table = _table("Tensors", "type", "count", "bytes")
    for dtype, (count, size) in _by_dtype(summary).items():
        table.add_row(Text(printable(dtype)), str(count), show_bytes(size))
    return table


def _tensor_list(summary: ModelSummary) -> Table:
    table = _table("All tensors", "name", "shape", "type", "bytes")
    for tensor in summary.tensors.values():
        shape = " x ".join(map(str, tensor.shape))
        table.add_row(
            Text(printable(tensor.name)), shape, tensor.dtype, show_bytes(tensor.size_bytes)
        )
    return table


def _table(title: str, *columns: str) -> Table:
    return Table(
        *columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False
    )


def _by_dtype(summary: ModelSummary) -> dict[str, tuple[int, int]]:
    """Count and bytes of the tensors of each type, the largest type first."""
    counts: dict[str, int] = {}
    for tensor in summary.tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + 1
    sizes = summary.weights_bytes_by_dtype
    return {
        dtype: (counts[dtype], sizes[dtype]) for dtype in sorted(sizes, key=lambda d: -sizes[d])
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested values under dotted names."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat


def _brief(value: Any) -> Any:
    if isinstance(value, list) and len(value) > _LONGEST_LIST:
        return {"length": len(value)}
    return value


def _brief_text(value: Any) -> str:
    if isinstance(value, list) and len(value) > _LONGEST_LIST:
        return f"{len(value):,} entries"
    text = str(value)
    if len(text) > _LONGEST_TEXT:
        return f"{text[:_LONGEST_TEXT].splitlines()[0]} ... ({len(text):,} characters)"
    return text
