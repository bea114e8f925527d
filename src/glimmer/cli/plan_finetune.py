"""The part of `glimmer plan` that is about training: what a fine-tuning run takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glimmer.training.memory import FinetuneChoices, FinetunePlan


def print_finetune_plan(
    model: str, family: str | None, choices: Mapping[str, Any], as_json: bool
) -> None:
    """Write what a run takes; ``choices`` are those of ``FinetuneChoices`` that were given."""
    from glimmer import native
    from glimmer.cli import terminal
    from glimmer.families import all_families
    from glimmer.model_memory import memory_of
    from glimmer.training.memory import FinetuneChoices, plan_finetuning

    memory = memory_of(model, family=family)
    given = {name: value for name, value in choices.items() if value is not None}
    if given.get("dtype", "auto") == "auto":
        whole = given["method"] in ("freeze", "full")
        given["dtype"] = "float32" if whole else _float_dtype(memory.stored)
    if "length" not in given:
        given["length"] = min(memory.architecture.max_position, FinetuneChoices().length)
    chosen = FinetuneChoices(**given)
    plan = plan_finetuning(memory.architecture, all_families()[memory.family], chosen)
    available = native.available_memory()
    if as_json:
        report = _report(memory.name, memory.family, chosen, plan, available)
        terminal.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        return
    terminal.tables().print(_table(memory.name, memory.family, chosen, plan, available))


def _float_dtype(stored: Mapping[str, str]) -> str:
    """The float in which a file holds most of its matrices; float16 for one of integers alone."""
    found = [dtype for dtype in stored.values() if dtype in ("float32", "bfloat16", "float16")]
    matrices = [stored[name] for name in stored if name.endswith("attn_q.weight")]
    likeliest = [dtype for dtype in matrices if dtype in found]
    return likeliest[0] if likeliest else "float16"


def _report(
    name: str, family: str, chosen: FinetuneChoices, plan: FinetunePlan, available: int | None
) -> dict[str, Any]:
    from dataclasses import asdict

    numbers = asdict(plan)
    counts = ("total_parameters", "trained_parameters")
    return {
        "model": name,
        "family": family,
        "choices": asdict(chosen),
        **{key: numbers.pop(key) for key in counts},
        "bytes": numbers,
        "peak_bytes": plan.peak,
        "disk_bytes": plan.disk,
        "available_bytes": available,
    }


def _table(
    name: str, family: str, chosen: FinetuneChoices, plan: FinetunePlan, available: int | None
) -> object:
    from rich.table import Table

    from glimmer.cli.quantities import show_bytes, show_count

    share = 100 * plan.trained_parameters / plan.total_parameters
    texts = f"{chosen.batch_size} x {chosen.length} tokens, {chosen.dtype}"
    checkpointed = ", with gradient checkpointing" if chosen.gradient_checkpointing else ""
    form: str = chosen.dtype
    if chosen.method == "qlora":
        form = f"linear layers in 4 bits, the rest {form}"
    rows = [
        ("weights", plan.weights, form),
        ("gradients", plan.gradients, ""),
        ("optimizer", plan.optimizer, "AdamW's two moments"),
        ("activations", plan.activations, texts + checkpointed),
        ("peak", plan.peak, "all of these; PyTorch and its libraries come on top"),
        ("disk", plan.disk, f"{show_bytes(plan.result)} of it the result"),
        ("free", available, "main memory of this machine"),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_row("model", name, family)
    table.add_row("method", chosen.method, "")
    table.add_row(
        "trained",
        show_count(plan.trained_parameters),
        f"{share:.3g} % of {show_count(plan.total_parameters)} parameters",
    )
    for label, size, remark in rows:
        table.add_row(label, "-" if size is None else show_bytes(size), remark)
    return table
