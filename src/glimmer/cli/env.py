"""`glimmer env`: versions and machine, for a bug report or a speed that surprises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from glimmer.cli.options import JsonOption


def env(as_json: JsonOption = False) -> None:
    """Show versions, the processor, memory and instruction sets."""
    from glimmer import native
    from glimmer.cli import terminal
    from glimmer.errors import GlimmerError

    facts = _facts()
    problem = None
    try:
        facts["instruction_set"] = native.instruction_set()
    except GlimmerError as error:
        # The rest is what helps to understand it: tell that first.
        facts["instruction_set"], problem = None, error
    if as_json:
        terminal.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    else:
        terminal.tables().print(_table(facts))
    if problem is not None:
        raise problem


def _facts() -> dict[str, Any]:
    import os
    import platform
    from importlib.metadata import version

    from glimmer import native
    from glimmer.cli import machine

    return {
        "glimmer": version("glimmer-lm"),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "tokenizers": version("tokenizers"),
        "system": platform.platform(),
        "processor": machine.cpu_model(),
        "cores": native.physical_cores(),
        "hardware_threads": machine.usable_cpus(),
        "memory_bytes": machine.total_memory(),
        "available_memory_bytes": native.available_memory(),
        "instruction_sets": native.instruction_sets(),
        "GLIMMER_ISA": os.environ.get("GLIMMER_ISA"),
    }


def _table(facts: Mapping[str, Any]) -> object:
    from rich.table import Table

    from glimmer.cli import terminal
    from glimmer.cli.quantities import show_bytes

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value is None:
            shown = "-"
        elif name.endswith("_bytes"):
            name, shown = name.removesuffix("_bytes"), show_bytes(value)
        else:
            shown = ", ".join(value) if isinstance(value, list) else str(value)
        label = name if name.isupper() else name.replace("_", " ")
        table.add_row(label, terminal.printable(shown))
    return table
