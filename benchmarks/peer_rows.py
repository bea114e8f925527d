"""The rows of the project's table of bars: what is measured, beside whom, and what is asked for."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import accuracy, batches, engine_figures, load_times, speed, workload
from benchmarks.bars import Bar, perplexity_bars
from benchmarks.machine import ForeignLoad, is_quiet
from benchmarks.model_files import model_files
from benchmarks.random_models import SHAPES, write_random_model
from benchmarks.rounds import LLAMA_CPP, PEERS, Command, our_engines, take_turns
from glimmer.catalogue import find_file
from glimmer.native import instruction_set

PARTS = ("prefill", "decode", "context", "load", "batches", "drafts", "demo", "accuracy")
FILES = ("S:q4_0", "S:q8_0", "S:q4_k", "L:q4_0")
CONTEXTS = (4096, 16384, 32768)
MAX_LARGE_ROUNDS = 3
"""Of a file of 6 billion weights, whatever was asked for."""

# The least ratio to the best peer that the project asks for.
SPEED_BARS: Mapping[tuple[str, str], float] = {
    ("prefill", "q4_0"): 1.5,
    ("prefill", "q8_0"): 1.1,
    ("prefill", "q4_k"): 1.1,
    ("decode", "q4_0"): 1.2,
    ("decode", "q8_0"): 1.05,
    ("decode", "q4_k"): 1.05,
}
CONTEXT_BARS: Mapping[int, float] = {4096: 2.0, 32768: 3.0}
BATCH_BAR, BATCH_DECODE_BAR = 1.6, 320.0
MAX_LOAD_S = 1.0
COPY_BAR, STORY_BAR = 2.0, 0.97
DEMO_BAR = 1.3

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work: every engine's figure, and what the project asks of them."""

    what: str
    figures: Mapping[str, str]
    bars: Sequence[Bar]
    measured: Any
    """Every value of every round."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Peers that could not be measured, and why."""


@dataclass(frozen=True, slots=True)
class Options:
    parts: Sequence[str]
    files: Sequence[str]
    contexts: Sequence[int]
    isas: Sequence[str]
    num_rounds: int
    num_threads: int
    progress: Progress

    def rounds_of(self, shape: str) -> int:
        return min(self.num_rounds, MAX_LARGE_ROUNDS) if shape == "L" else self.num_rounds

    def on(self, shape: str) -> dict[str, Any]:
        """What every measurement takes: how much, and who is told."""
        return {
            "num_rounds": self.rounds_of(shape),
            "num_threads": self.num_threads,
            "progress": self.progress,
        }

    def ours(self, module: str, *options: str) -> dict[str, Command]:
        return our_engines(Command(module, options), self.isas)


def rows(options: Options) -> Iterator[Row]:
    per_file = {"prefill", "decode", "context", "load"}
    for file in options.files:
        if per_file & set(options.parts):
            yield from _file_rows(file, options)
    for part, make in {
        "batches": _batch_rows,
        "drafts": _drafts_row,
        "demo": _demo_row,
        "accuracy": _accuracy_rows,
    }.items():
        if part in options.parts:
            yield from make(options)


def _file_rows(file: str, options: Options) -> Iterator[Row]:
    shape, _, dtype = file.partition(":")
    wanted = [
        part
        for part in options.parts
        # Contexts and loading are asked of int4 alone, loading of the large file alone.
        if part in ("prefill", "decode")
        or (dtype == "q4_0" and (part == "context" or (part == "load" and shape == "L")))
    ]
    if not wanted:
        return
    with tempfile.TemporaryDirectory() as folder:
        options.progress(f"{file}: making the file")
        path = Path(folder) / "model.gguf"
        write_random_model(path, "chatglm", SHAPES[shape], dtype)
        for part in wanted:
            match part:
                case "context":
                    yield from _context_rows(file, path, options)
                case "load":
                    yield _load_row(file, path, options)
                case _:
                    yield _speed_row(part, file, path, options)


def _speed_row(task: str, file: str, path: Path, options: Options) -> Row:
    shape, _, dtype = file.partition(":")
    # The peers multiply with int8 inputs: this is like with like.
    ours = options.ours("glimmer_llm", "--activations", "int8")
    # A large file is long work: one measurement a process after the one that does not count.
    extra = ("--repeats", "1") if shape == "L" else ()
    found = speed.measure(
        task, file, str(path), {**ours, **PEERS}, options=extra, **options.on(shape)
    )

    def rate(engine: str) -> str:
        """GMAC/s of a prompt, GB/s of weights else."""
        if task == "prefill":
            return f"{found.median(engine) * SHAPES[shape].num_multiplied / 1e9:.0f} GMAC/s"
        return f"{found.median(engine) * SHAPES[shape].num_bytes(dtype) / 1e9:.1f} GB/s"

    length = {"prefill": workload.PREFILL_TOKENS, "decode": workload.DECODE_TOKENS}[task]
    return Row(
        f"{task} of {length}, {file}",
        {e: f"{found.median(e):.1f} tok/s, {rate(e)}" for e in found.tokens_per_s},
        list(_ratio_bars(found, ours, SPEED_BARS.get((task, dtype)))),
        asdict(found),
        found.missing,
    )


def _ratio_bars(
    found: speed.Speed, ours: Mapping[str, Command], limit: float | None
) -> Iterator[Bar]:
    """Each of our engines beside the best peer: the median of the rounds' own ratios."""
    if (best := found.best_peer) is None:
        return
    for engine in ours:
        ratios = found.ratios(engine, best)
        assert ratios is not None
        ratio, quiet = statistics.median(ratios), is_quiet(found.foreign_load)
        yield Bar(f"{engine} to {best}", ratio, ">=", limit, "x", quiet)


def _context_rows(file: str, path: Path, options: Options) -> Iterator[Row]:
    shape = file.partition(":")[0]
    # The core, whose cache can be filled by hand; a step behind a context is long beside what the
    # Python engine adds.
    ours = options.ours("glimmer_native", "--activations", "int8")
    contexts = ",".join(map(str, options.contexts))
    model = ("--model", str(path), "--threads", str(options.num_threads))
    rounds = take_turns(
        {**ours, **PEERS},
        ("context", *model, "--contexts", contexts),
        num_rounds=options.rounds_of(shape),
        progress=lambda text: options.progress(f"decode at contexts, {file}, {text}"),
    )
    for context in options.contexts:
        values = {
            engine: [found[str(context)] for found in per_round]
            for engine, per_round in rounds.values("tokens_per_s").items()
        }
        found = speed.Speed("context", file, values, rounds.missing, rounds.foreign_load)
        yield Row(
            f"decode at {context} tokens, {file}",
            {e: f"{found.median(e):.2f} tok/s" for e in values},
            list(_ratio_bars(found, ours, CONTEXT_BARS.get(context))),
            asdict(found),
            found.missing,
        )


def _load_row(file: str, path: Path, options: Options) -> Row:
    load = ForeignLoad()
    found, missing = load_times.measure_all(
        path,
        num_threads=options.num_threads,
        num_rounds=MAX_LARGE_ROUNDS,
        progress=options.progress,
    )
    quiet = is_quiet(load.share())
    bars = []
    for one in found:
        if one.engine in load_times.OURS:
            peak, allowed = one.peak_bytes / 1e6, one.allowed_bytes / 1e6
            bars += [
                Bar(one.engine, statistics.median(one.seconds), "<", MAX_LOAD_S, "s", quiet),
                Bar(f"{one.engine}, peak", peak, "<=", allowed, "MB"),
            ]
    return Row(
        f"load, warm, and peak memory, {file}",
        {
            one.engine: f"{statistics.median(one.seconds):.2f} s, {one.peak_bytes / 1e6:.0f} MB"
            for one in found
        },
        bars,
        [asdict(one) for one in found],
        missing,
    )


def _batch_rows(options: Options) -> Iterator[Row]:
    ours = options.ours("glimmer_llm", "--activations", "int8")
    found = batches.measure(ours=ours, **options.on("S"))
    most, quiet = batches.SIZES[-1], is_quiet(found.foreign_load)
    ratios = []
    for engine in ours:
        # What is held to AVX2 is compared with what is held to AVX2.
        wide = instruction_set() != "avx2" and not engine.endswith("(avx2)")
        if (best := found.best_peer(wide=wide)) is not None:
            ratio = found.median(engine, most) / found.best(best)
            ratios.append(
                Bar(f"{engine} to {best} at its best", ratio, ">=", BATCH_BAR, "x", quiet)
            )

    def speeds(of: Mapping[int, Sequence[float]]) -> str:
        return " / ".join(f"{statistics.median(of[size]):.0f}" for size in batches.SIZES)

    sizes = " / ".join(map(str, batches.SIZES))
    yield Row(
        f"{sizes} sequences of {workload.BATCH_PROMPT_TOKENS} + {workload.BATCH_ANSWER_TOKENS}, "
        "S:q4_0, answers' tok/s, prompts included in the time",
        {engine: speeds(of) for engine, of in found.tokens_per_s.items()},
        [
            *ratios,
            *(
                Bar(f"{engine} to its smaller", found.smallest_rise(engine), ">=", 1, "x", quiet)
                for engine in ours
            ),
        ],
        asdict(found),
        found.missing,
    )
    decode = found.decode_tokens_per_s
    yield Row(
        f"{sizes} sequences, S:q4_0, steps without prompts, tok/s",
        {engine: speeds(of) for engine, of in decode.items()},
        [
            Bar(engine, statistics.median(of[most]), ">=", BATCH_DECODE_BAR, "tok/s", quiet)
            for engine, of in decode.items()
        ],
        None,
    )


def _drafts_row(options: Options) -> Iterator[Row]:
    load = ForeignLoad()
    options.progress("drafts")
    gains = engine_figures.measure_drafts(_demo(), options.num_threads)
    quiet = is_quiet(load.share())
    yield Row(
        "drafts against plain decode, the demo file, the same tokens",
        {what: f"{min(gain):.2f} to {max(gain):.2f} x" for what, gain in gains.items()},
        [
            Bar(
                what,
                statistics.median(gain),
                ">=",
                COPY_BAR if what in engine_figures.COPIES else STORY_BAR,
                "x",
                quiet,
            )
            for what, gain in gains.items()
        ],
        gains,
    )


def _demo_row(options: Options) -> Iterator[Row]:
    # As it runs by default: int16 activations, where the peer takes int8.
    ours = options.ours("glimmer_llm")
    engines = {**ours, LLAMA_CPP: PEERS[LLAMA_CPP]}
    found = speed.measure("decode", "the demo file", _demo(), engines, **options.on("S"))
    yield Row(
        f"decode of {workload.DECODE_TOKENS}, the demo file",
        {e: f"{found.median(e):.1f} tok/s" for e in found.tokens_per_s},
        list(_ratio_bars(found, ours, DEMO_BAR)),
        asdict(found),
        found.missing,
    )


def _accuracy_rows(options: Options) -> Iterator[Row]:
    num_threads, progress = options.num_threads, options.progress
    with model_files(_demo(), num_threads, True, progress) as files:
        found = accuracy.measure_perplexity(
            files, with_peer=True, num_threads=num_threads, progress=progress
        )
    for file in files:
        texts = [p for p in found if p.file == file and p.text == accuracy.ALL_TEXTS]
        yield Row(
            f"perplexity, the demo's weights, {file}",
            {"float32": f"{texts[0].reference:.3f}"}
            | {p.engine: f"{100 * p.increase:+.2f} ± {100 * p.uncertainty:.2f} %" for p in texts},
            list(perplexity_bars(texts)),
            [asdict(p) for p in found if p.file == file],
        )


def _demo() -> str:
    return str(find_file("demo")[0].resolve())
