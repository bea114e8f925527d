"""What adapters cost a step: decoding with LoRA for some of the sequences, against none of them.

`python -m benchmarks.adapter_cost`: steps of a batch in which nobody, half or everybody has an
adapter take turns, so that what else the machine does weighs on all alike. With one thread it is
the thread's own time that counts, which other programs do not add to.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

import glimmer
from glimmer.loader import LoadedModel
from glimmer.native import BLOCK_SIZE, KVCache, Lora, StepInput

_CONTEXT = 64  # tokens of each sequence


def random_lora(model: LoadedModel, rank: int, seed: int) -> Lora:
    """For every linear of attention and MLP, as ``target_modules="all-linear"`` makes."""
    rng = np.random.default_rng(seed)
    parts = {}
    for name, shape in model.architecture.weight_shapes().items():
        linear = name.removesuffix(".weight")
        if len(shape) == 2 and linear.rpartition(".")[2].startswith(("attn_", "mlp_")):
            a = rng.standard_normal((rank, shape[1])).astype(np.float32) / np.sqrt(shape[1])
            b = rng.standard_normal((shape[0], rank)).astype(np.float32) / 100
            parts[linear] = (a, b, 1.0)
    return Lora(model.native, parts)


def _step(model: LoadedModel, batch: int, first: int, length: int) -> StepInput:
    """Tokens ``first`` to ``length`` of each sequence."""
    blocks = -(-_CONTEXT // BLOCK_SIZE)
    num_new = length - first
    ids = np.arange(batch * num_new) * 7 % model.architecture.vocab_size
    return StepInput(
        token_ids=ids.astype(np.int32),
        query_lengths=np.full(batch, num_new, np.int32),
        kv_lengths=np.full(batch, length, np.int32),
        block_tables=np.arange(batch * blocks, dtype=np.int32).reshape(batch, blocks),
        logit_rows=np.arange(num_new - 1, batch * num_new, num_new, dtype=np.int32),
        return_logits=True,
    )


def measure(
    model: LoadedModel, *, batch: int, rank: int, num_adapters: int, rounds: int
) -> dict[str, float]:
    """Milliseconds of a step, by how many of the batch have an adapter: medians of ``rounds``."""
    loras = [random_lora(model, rank, seed) for seed in range(num_adapters)]
    half: Sequence[Lora | None] = [
        loras[i // 2 % num_adapters] if i % 2 else None for i in range(batch)
    ]
    kinds: dict[str, Sequence[Lora | None]] = {
        "none": (),
        "half": half,
        "all": [loras[i % num_adapters] for i in range(batch)],
    }
    cache = KVCache(model.native, batch * -(-_CONTEXT // BLOCK_SIZE), model.default_kv_dtype)
    model.native.step(cache, _step(model, batch, 0, _CONTEXT - 1))
    step = _step(model, batch, _CONTEXT - 1, _CONTEXT)
    clock = time.thread_time if model.native.num_threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, chosen in kinds.items():
            start = clock()
            model.native.step(cache, replace(step, loras=chosen))
            times[kind].append(1e3 * (clock() - start))
    return {kind: statistics.median(values) for kind, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    model = glimmer.load(given.model, num_threads=given.threads)
    found = measure(
        model,
        batch=given.batch,
        rank=given.rank,
        num_adapters=given.adapters,
        rounds=given.rounds,
    )
    ratios = {f"{kind} / none": round(found[kind] / found["none"], 3) for kind in ("half", "all")}
    print(json.dumps({"milliseconds": found, **ratios}))


if __name__ == "__main__":
    main()
