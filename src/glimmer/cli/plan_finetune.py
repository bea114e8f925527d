"""The part of `glimmer plan` that is about training: what a fine-tuning run takes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glimmer.training.memory import FinetuneChoices, FinetunePlan

LIBRARIES_BYTES = 512 << 20
"""Of the training side once it is imported, as docs/training-data.md tells."""


def print_finetune_plan(
    model: str,
    family: str | None,
    choices: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Write what a run takes; ``choices`` are those of ``FinetuneChoices`` that were given."""
    from glimmer import native
    from glimmer.cli import terminal
    from glimmer.families import all_families
    from glimmer.model_memory import memory_of
    from glimmer.training.choices import base_dtype
    from glimmer.training.memory import FinetuneChoices, plan_finetuning

    memory = memory_of(model, family=family)
    given = {name: value for name, value in choices.items() if value is not None}
    on_processor = given.get("device", "cpu") == "cpu"
    stored = _most(memory.stored, memory.architecture.weight_shapes())
    dtype = base_dtype(
        given["method"], given.get("dtype", "auto"), stored, on_processor=on_processor
    )
    given["dtype"] = _kept(stored) if dtype == "auto" else dtype
    if "length" not in given:
        given["length"] = min(memory.architecture.max_position, FinetuneChoices().length)
    chosen = FinetuneChoices(**given)
    plan = plan_finetuning(memory.architecture, all_families()[memory.family], chosen)
    free = native.available_memory() if on_processor else None
    fits = None if free is None else plan.peak + LIBRARIES_BYTES <= free
    if as_json:
        report = _report(memory.name, memory.family, chosen, plan)
        report |= {"available_bytes": free, "fits": fits}
        terminal.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        return
    terminal.tables().print(_table(memory.name, memory.family, chosen, plan, free))
    if fits is not None:
        terminal.write("It fits.\n" if fits else f"It does not fit. {_advice(chosen)}\n")


def _most(stored: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> str:
    """What most weights are stored in."""
    counts: Counter[str] = Counter()
    for name, shape in shapes.items():
        counts[stored[name]] += math.prod(shape)
    return counts.most_common(1)[0][0]


def _kept(stored: str) -> str:
    return stored if stored in ("float32", "bfloat16", "float16") else "float16"


def _advice(chosen: FinetuneChoices) -> str:
    smaller = {
        "--gradient-checkpointing": not chosen.gradient_checkpointing,
        "--finetune lora": chosen.method in ("freeze", "full"),
        "--finetune qlora": chosen.method in ("lora", "ptuning", "freeze", "full"),
        "--dtype bfloat16": chosen.dtype == "float32" and chosen.method not in ("freeze", "full"),
        "a smaller --batch-size": chosen.batch_size > 1,
        "a smaller --length": chosen.length > 512,
    }
    return f"Less takes {', '.join(option for option, less in smaller.items() if less)}."


def _report(name: str, family: str, chosen: FinetuneChoices, plan: FinetunePlan) -> dict[str, Any]:
    from dataclasses import asdict

    numbers = asdict(plan)
    counts = ("total_parameters", "trained_parameters")
    return {
        "model": name,
        "family": family,
        "device": chosen.device,
        "choices": asdict(chosen),
        **{key: numbers.pop(key) for key in counts},
        "bytes": numbers,
        "peak_bytes": plan.peak,
        "disk_bytes": plan.disk,
    }


def _table(
    name: str,
    family: str,
    chosen: FinetuneChoices,
    plan: FinetunePlan,
    free: int | None,
) -> object:
    from rich.table import Table

    from glimmer.cli.quantities import show_bytes, show_count

    share = 100 * plan.trained_parameters / plan.total_parameters
    count = chosen.num_tokens // chosen.length
    texts = f"{count} x {chosen.length} tokens, {chosen.dtype}"
    checkpointed = ", with gradient checkpointing" if chosen.gradient_checkpointing else ""
    form: str = chosen.dtype
    if chosen.method == "qlora":
        form = f"linear layers in 4 bits, the rest {form}"
    rows: list[tuple[str, int | None, str]] = [
        ("weights", plan.weights, form),
        ("gradients", plan.gradients, ""),
        ("optimizer", plan.optimizer, "AdamW's two moments"),
        ("activations", plan.activations, texts + checkpointed),
        ("peak", plan.peak, "all of these; PyTorch and its libraries come on top"),
        ("disk", plan.disk, f"{show_bytes(plan.result)} of it the result"),
    ]
    if plan.reference:
        rows.insert(
            4, ("reference", plan.reference, "the network as it was, which dpo compares with")
        )
    if chosen.device == "cpu":
        rows.append(("free", free, "main memory of this machine"))
    table = Table.grid(padding=(0, 2))
    table.add_row("model", name, family)
    where = {"cpu": "on a processor", "gpu": "on a GPU"}[chosen.device]
    kind = "" if chosen.objective == "sft" else f" ({chosen.objective})"
    table.add_row("method", chosen.method + kind, where)
    table.add_row(
        "trained",
        show_count(plan.trained_parameters),
        f"{share:.3g} % of {show_count(plan.total_parameters)} parameters",
    )
    for label, size, remark in rows:
        table.add_row(label, "-" if size is None else show_bytes(size), remark)
    return table
