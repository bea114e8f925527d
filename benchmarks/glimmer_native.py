"""Glimmer's native core, step by step, without its Python engine. Runs in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import glimmer
from benchmarks import child, reference, workload
from glimmer.loader import LoadedModel
from glimmer.native import BLOCK_SIZE, KVCache, SamplingInput, StepInput


class NativeEngine:
    def __init__(self, model: LoadedModel, room: int = workload.ROOM_TOKENS) -> None:
        num_blocks = -(-room // BLOCK_SIZE)
        self._native = model.native
        self._cache = KVCache(model.native, num_blocks, model.default_kv_dtype)
        self._block_table = np.arange(num_blocks, dtype=np.int32)[None]
        self._greedy = _greedy_sampling()
        self._length = 0
        self.vocab_size = model.architecture.vocab_size

    def clear(self) -> None:
        self._length = 0

    def extend(self, length: int) -> None:
        """See ``workload.ContextEngine``."""
        num_read = workload.CONTEXT_PROMPT_TOKENS // BLOCK_SIZE
        for block in range(num_read, length // BLOCK_SIZE):
            self._cache.copy_block(block % num_read, block)
        self._length = length

    def forward(self, token_ids: list[int]) -> int:
        self._length += len(token_ids)
        step = StepInput(
            token_ids=np.array(token_ids, np.int32),
            query_lengths=np.array([len(token_ids)], np.int32),
            kv_lengths=np.array([self._length], np.int32),
            block_tables=self._block_table,
            logit_rows=np.array([len(token_ids) - 1], np.int32),
            sampling=self._greedy,
        )
        return int(self._native.step(self._cache, step).token_ids[0])


def _greedy_sampling() -> SamplingInput:
    """The values of one row that takes the likeliest token."""
    nothing, no_offsets = np.zeros(0, np.int32), np.zeros(2, np.int32)
    return SamplingInput(
        temperature=np.zeros(1, np.float32),
        top_k=np.zeros(1, np.int32),
        top_p=np.ones(1, np.float32),
        min_p=np.zeros(1, np.float32),
        seed=np.zeros(1, np.uint64),
        position=np.zeros(1, np.int64),
        repetition_penalty=np.ones(1, np.float32),
        presence_penalty=np.zeros(1, np.float32),
        frequency_penalty=np.zeros(1, np.float32),
        history=nothing,
        history_offsets=no_offsets,
        prompt_lengths=np.zeros(1, np.int32),
        bias_ids=nothing,
        bias_values=np.zeros(0, np.float32),
        bias_offsets=no_offsets,
    )


def _save_reference(path: Path, model: LoadedModel) -> None:
    """Answer the prompts in float32 and keep the tokens and the logits."""
    engine, sequences = NativeEngine(model), []
    for prompt in reference.PROMPTS:
        ids = model.chat_template.encode([{"role": "user", "content": prompt}])
        prompt_length = len(ids)
        engine.clear()
        ids.append(engine.forward(ids))
        while len(ids) < prompt_length + reference.ANSWER_TOKENS:
            ids.append(engine.forward(ids[-1:]))
        sequences.append((ids, prompt_length, model.logits(ids)))
    reference.save(path, sequences)


def main() -> None:
    parser = child.parser(__doc__)
    parser.add_argument("task", choices=["prefill", "decode", "context", "reference", "accuracy"])
    parser.add_argument("--activations", choices=["auto", "int8", "int16"], default="auto")
    parser.add_argument("--contexts", type=child.numbers, default=[])
    parser.add_argument("--reference", type=Path)
    args = parser.parse_args()
    model = glimmer.load(
        args.model,
        weights="float32" if args.task == "reference" else "auto",
        num_threads=args.threads,
        activations=args.activations,
    )
    result: dict[str, object] = {}
    match args.task:
        case "prefill":
            result["tokens_per_s"] = workload.prefill_tokens_per_s(
                NativeEngine(model), args.repeats
            )
        case "decode":
            engine = NativeEngine(model)
            result["tokens_per_s"] = workload.decode_tokens_per_s(engine, args.repeats)
        case "context":
            room = max(args.contexts) + 2 * workload.CONTEXT_DECODE_TOKENS
            engine = NativeEngine(model, room)
            result["tokens_per_s"] = workload.context_tokens_per_s(engine, args.contexts)
        case "reference":
            _save_reference(args.reference, model)
        case "accuracy":
            result |= reference.compare(args.reference, model.logits)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
