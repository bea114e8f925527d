"""Glimmer as a program uses it: LLM.generate, text included. Runs in a process of its own."""

from __future__ import annotations

import json
import time

import glimmer
from benchmarks import child, load_times, workload
from benchmarks.glimmer_engine import decode_tokens_per_s
from benchmarks.process_memory import peak_bytes, resident_bytes
from glimmer import LLM, RequestOutput, SamplingParams
from glimmer.native import BLOCK_SIZE, kv_block_bytes


def _generate(llm: LLM, num_prompt_tokens: int, num_tokens: int, seed: int) -> RequestOutput:
    ids = workload.random_ids(num_prompt_tokens, llm.model.architecture.vocab_size, seed)
    params = SamplingParams(temperature=0, max_new_tokens=num_tokens, ignore_eos=True)
    return llm.generate([ids], params)[0]


def _prefill(llm: LLM, seed: int) -> float:
    output = _generate(llm, workload.PREFILL_TOKENS, 1, seed)
    return workload.PREFILL_TOKENS / output.timing.total_s


def _decode(llm: LLM, seed: int) -> float:
    # The first token comes out of the prompt's own step.
    output = _generate(llm, workload.PROMPT_TOKENS, workload.DECODE_TOKENS + 1, seed)
    return workload.DECODE_TOKENS / (output.timing.total_s - output.timing.time_to_first_token_s)


def _memory(llm: LLM) -> dict[str, object]:
    _generate(llm, workload.PREFILL_TOKENS, workload.DECODE_TOKENS, seed=0)
    model = llm.model
    num_blocks = -(-(workload.PREFILL_TOKENS + workload.DECODE_TOKENS) // BLOCK_SIZE)
    return {
        "peak_bytes": peak_bytes(),
        "ended": resident_bytes(),
        "weights_bytes": model.weights_bytes,
        "kv_bytes": num_blocks * kv_block_bytes(model.architecture, model.default_kv_dtype),
    }


class BatchedLLM:
    """See ``workload.BatchEngine``."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.vocab_size = llm.model.architecture.vocab_size

    def generate(self, prompts: list[list[int]], num_tokens: int) -> None:
        params = SamplingParams(temperature=0, max_new_tokens=num_tokens, ignore_eos=True)
        outputs = self._llm.generate(prompts, params)
        assert all(o.usage.completion_tokens == num_tokens for o in outputs)


def main() -> None:
    parser = child.parser(__doc__)
    parser.add_argument("task", choices=["prefill", "decode", "memory", "batches", "load"])
    parser.add_argument("--activations", choices=["auto", "int8", "int16"], default="auto")
    args = parser.parse_args()
    imported = resident_bytes()
    start = time.perf_counter()
    model = glimmer.load(args.model, num_threads=args.threads, activations=args.activations)
    # Random networks run in circles, which drafts make quick: nothing that peers could match.
    if args.task == "batches":
        llm = LLM(model, max_num_seqs=32, max_model_len=256, speculation=False)
    else:
        llm = LLM(model, max_num_seqs=1, speculation=False)
    load_s = time.perf_counter() - start
    result: dict[str, object] = {}
    match args.task:
        case "prefill":
            result["tokens_per_s"] = workload.median_of_repeats(
                lambda seed: _prefill(llm, seed), args.repeats
            )
        case "decode":
            result["tokens_per_s"] = workload.median_of_repeats(
                lambda seed: _decode(llm, seed), args.repeats
            )
        case "batches":
            result["tokens_per_s"] = workload.batch_tokens_per_s(BatchedLLM(llm))
            result["decode_tokens_per_s"] = {
                size: decode_tokens_per_s(model, size) for size in workload.BATCH_SIZES
            }
        case "load":
            _generate(llm, 1, 1, seed=0)
            result |= {
                "seconds": load_s,
                "first_token_s": time.perf_counter() - start,
                "peak_bytes": peak_bytes(),
                "file_bytes": load_times.weights_bytes(args.model),
                "kv_bytes": load_times.kv_bytes(args.model, BLOCK_SIZE),
            }
        case "memory":
            loaded = resident_bytes()
            result |= {"load_s": load_s, "imported": imported, "loaded": loaded}
            result |= _memory(llm)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
