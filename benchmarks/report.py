"""A run's results as tables for a person."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.table import Table

from benchmarks import workload
from benchmarks.accuracy import Accuracy, Perplexity
from benchmarks.bars import bars
from benchmarks.batches import SIZES, Batches
from benchmarks.engine_figures import EngineFigures
from benchmarks.machine import MAX_FOREIGN_LOAD, Machine, Peer
from benchmarks.memory import ALLOWANCE_BYTES, Memory
from benchmarks.results import Results
from benchmarks.server_figures import ServerFigures
from benchmarks.speed import Speed
from benchmarks.startup import StartUp, medians

HOLDS = {True: "[green]yes[/]", False: "[bold red]no[/]", None: "not known"}


def show(console: Console, results: Results) -> None:
    for part in _parts(results):
        console.print(part)
        console.print()


def describe(machine: Machine, peer: Peer) -> str:
    lines = [
        f"{machine.processor}, {machine.num_cores} cores, {machine.num_threads} threads",
        f"Glimmer {machine.glimmer}: {machine.isa}; Python {machine.python}",
    ]
    if peer.version is None:
        lines.append(f"llama.cpp is not measured: {peer.missing}")
    else:
        lines.append(
            f"llama.cpp of llama-cpp-python {peer.version}, compiled for {_compiled_for(peer)}"
        )
        if peer.is_wider:
            lines.append("It uses instructions that Glimmer does not: not like with like.")
    return "\n".join(lines)


def _compiled_for(peer: Peer) -> str:
    instructions = [f for f in peer.features if f.startswith(("SSE", "AVX", "FMA", "F16C", "AMX"))]
    others = [f for f in peer.features if f not in instructions]
    widest = [f for f in instructions if f.startswith(("AVX", "AMX"))][-1:] or instructions[-1:]
    return f"{widest[0] if widest else 'no vectors'} ({', '.join(instructions + others)})"


def _parts(results: Results) -> Iterator[RenderableType]:
    yield describe(results.machine, results.peer)
    for measured in results.speeds:
        yield _speed_table(measured)
    if results.startup is not None:
        yield _startup_table(results.startup)
    if results.memory is not None:
        yield _memory_table(results.memory)
    if results.accuracy:
        yield _accuracy_table(results.accuracy)
    if results.perplexity:
        yield perplexity_table(results.perplexity)
    if results.batches is not None:
        yield _batches_table(results.batches)
    if results.engine is not None:
        yield _engine_table(results.engine)
    if results.server is not None:
        yield _server_table(results.server)
    if (table := _bars_table(results)).row_count:
        yield table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _speed_table(measured: Speed) -> Table:
    what = {
        "prefill": f"Prefill of {workload.PREFILL_TOKENS} tokens",
        "decode": f"Decode of {workload.DECODE_TOKENS} tokens after {workload.PROMPT_TOKENS}",
    }[measured.task]
    table = _table(f"{what}, {measured.file}", "engine", "tok/s", "x llama.cpp", "range")
    for engine in measured.tokens_per_s:
        row = [engine, f"{measured.median(engine):.1f}", "", ""]
        if (ratios := measured.ratios(engine)) is not None:
            row[2:] = [
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
            ]
        table.add_row(*row)
    if (load := measured.foreign_load) is not None:
        table.caption = f"Other programs took {load:.0%} of the processors meanwhile."
        if load > MAX_FOREIGN_LOAD:
            table.caption += " Too much for a comparison: measure again on a quiet machine."
            table.caption_style = "bold red"
    return table


def _startup_table(startup: StartUp) -> Table:
    table = _table("Start-up", "what", "seconds", "range")
    names = {
        "import_s": "import glimmer",
        "import_llm_s": "from glimmer import LLM",
        "help_s": "glimmer --help",
        "first_token_s": "glimmer chat -p, to the first token",
    }
    for field, seconds in medians(startup).items():
        values = getattr(startup, field)
        table.add_row(names[field], f"{seconds:.3f}", f"{min(values):.3f} to {max(values):.3f}")
    return table


def _memory_table(memory: Memory) -> Table:
    title = f"Memory, {workload.PREFILL_TOKENS} + {workload.DECODE_TOKENS} tokens"
    table = _table(title, "what", "MB")

    def row(name: str, size_bytes: int | None) -> None:
        if size_bytes is not None:
            table.add_row(name, f"{size_bytes / 1e6:.1f}")

    row("file", memory.file_bytes)
    row("KV blocks used", memory.kv_bytes)
    row(f"allowed: both and {ALLOWANCE_BYTES // 10**6}", memory.allowed_bytes)
    row("Glimmer's peak", memory.peak_bytes)
    row("  of it packed weights", memory.weights_bytes)
    for stage, resident in memory.stages.items():
        for kind, size_bytes in resident.items():
            row(f"  {stage}: {kind}", size_bytes)
    row("llama.cpp's peak", memory.peer_peak_bytes)
    table.caption = f"Glimmer loads in {memory.load_s:.3f} s"
    if memory.peer_load_s is not None:
        table.caption += f", llama.cpp in {memory.peer_load_s:.3f} s"
    return table


def _accuracy_table(accuracy: Mapping[str, Accuracy]) -> Table:
    table = _table("Logits against float32", "engine", "mean error", "largest", "same greedy token")
    for engine, found in accuracy.items():
        same = round(found.agreement * found.num_compared)
        table.add_row(
            engine,
            f"{found.mean_error:.4f}",
            f"{found.max_error:.3f}",
            f"{same} of {found.num_compared}",
        )
    spread = next(iter(accuracy.values())).logit_std
    table.caption = f"The logits of a token have a standard deviation of {spread:.2f}."
    return table


def perplexity_table(found: Sequence[Perplexity]) -> Table:
    columns = ("file, text", "float32", "engine", "higher by", "divergence", "same greedy token")
    table = _table("Perplexity, and distance from float32", *columns)
    for p in found:
        table.add_row(
            f"{p.file}, {p.text}",
            f"{p.reference:.3f}",
            p.engine,
            f"{100 * p.increase:+.3f} ± {100 * p.uncertainty:.3f} %",
            f"{p.divergence:.6f}",
            f"{100 * p.agreement:.2f} %",
        )
    total = max(p.num_tokens for p in found)
    table.caption = (
        f"{total} tokens of text; ± are two standard errors; divergence in nats a token."
    )
    return table


def _batches_table(batches: Batches) -> Table:
    table = _table(
        f"Sequences of {workload.BATCH_PROMPT_TOKENS} + {workload.BATCH_ANSWER_TOKENS} tokens: "
        "generated tok/s, prompts included",
        "engine",
        *map(str, SIZES),
    )
    for engine in batches.tokens_per_s:
        table.add_row(engine, *(f"{batches.median(engine, size):.1f}" for size in SIZES))
    for engine, why in batches.missing.items():
        table.add_row(f"{engine}: {why}", *[""] * len(SIZES))
    if batches.foreign_load is not None:
        table.caption = f"Other programs took {batches.foreign_load:.0%} of the processors."
    return table


def _engine_table(engine: EngineFigures) -> Table:
    table = _table("The engine", "what", "median", "range")
    rows = {
        "its share of a step with 32 sequences, %": [100 * x for x in engine.overhead],
        "first token of 2016 tokens, s": engine.first_s,
        "first token with 2000 of them cached, s": engine.second_s,
        "the same as a ratio": engine.prefix_gains,
        **{f"drafts, {work}: x": gains for work, gains in engine.draft_gains.items()},
    }
    return _fill(table, rows)


def _fill(table: Table, rows: Mapping[str, Sequence[float]]) -> Table:
    for what, values in rows.items():
        table.add_row(
            what, f"{statistics.median(values):.3g}", f"{min(values):.3g} to {max(values):.3g}"
        )
    return table


def _server_table(server: ServerFigures) -> Table:
    table = _table("200 streams of 64 tokens, 32 at a time", "what", "median", "range")
    rows = {
        "engine, tok/s": server.engine_tokens_per_s,
        "server, tok/s": server.server_tokens_per_s,
        "the server costs, %": [100 * x for x in server.overheads],
        "engine, first token of one client, ms": [1000 * x for x in server.engine_first_token_s],
        "server, first token of one client, ms": [1000 * x for x in server.server_first_token_s],
        "the server adds, ms": [1000 * x for x in server.delays_s],
    }
    return _fill(table, rows)


def _bars_table(results: Results) -> Table:
    table = _table("Bars", "bar", "measured", "must be", "holds")
    for bar in bars(results):
        table.add_row(bar.name, bar.measured, bar.asked, HOLDS[bar.holds])
    return table
