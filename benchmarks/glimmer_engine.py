"""What the engine adds to a step, and what its prefix cache saves. Runs in a process of its own."""

from __future__ import annotations

import json
import time

import glimmer
from benchmarks import child, workload
from glimmer import LLM, SamplingParams
from glimmer.engine import Engine, Request
from glimmer.loader import LoadedModel
from glimmer.native import KVCache, StepInput, StepResult

PREFIX_TOKENS, QUESTION_TOKENS = 2000, 16
NUM_SEQUENCES, NUM_STEPS = 32, 60


def prefix_times(llm: LLM, seed: int) -> dict[str, float]:
    """Seconds to the first token of a prompt, and of another with the same beginning."""
    vocab_size = llm.model.architecture.vocab_size
    prefix = workload.random_ids(PREFIX_TOKENS, vocab_size, seed)
    params = SamplingParams(temperature=0, max_new_tokens=1, ignore_eos=True)
    first, second = (
        llm.generate([[*prefix, *workload.random_ids(QUESTION_TOKENS, vocab_size, s)]], params)[0]
        for s in (seed + 1000, seed + 2000)
    )
    return {
        "first_s": first.timing.time_to_first_token_s,
        "second_s": second.timing.time_to_first_token_s,
    }


def decoding_engine(model: LoadedModel, num_sequences: int, params: SamplingParams) -> Engine:
    """An engine whose sequences have read their prompts, of ``BATCH_PROMPT_TOKENS``."""
    cache = KVCache(model.native, 16 * num_sequences)
    engine = Engine(model.native, cache, max_num_seqs=num_sequences, max_model_len=512)
    for number in range(num_sequences):
        vocab_size = model.architecture.vocab_size
        prompt = workload.random_ids(workload.BATCH_PROMPT_TOKENS, vocab_size, number)
        engine.add_request(Request(number, tuple(prompt), params, frozenset(), number))
    while len(engine.step()) < num_sequences:
        pass
    return engine


def decode_tokens_per_s(model: LoadedModel, num_sequences: int) -> float:
    """Of so many sequences together, prompts left out."""
    params = SamplingParams(temperature=0, max_new_tokens=300, ignore_eos=True, speculation=False)
    engine = decoding_engine(model, num_sequences, params)
    start = time.perf_counter()
    for _ in range(NUM_STEPS):
        engine.step()
    return NUM_STEPS * num_sequences / (time.perf_counter() - start)


def overhead(model: LoadedModel) -> float:
    """The share of a step that is not the core's: scheduling, arrays, taking the tokens."""
    native, step, seconds = model.native, model.native.step, [0.0]

    def timed(cache: KVCache, given: StepInput) -> StepResult:
        start = time.perf_counter()
        result = step(cache, given)
        seconds[0] += time.perf_counter() - start
        return result

    params = SamplingParams(temperature=0.8, max_new_tokens=300, ignore_eos=True)
    engine = decoding_engine(model, NUM_SEQUENCES, params)
    native.step = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    for _ in range(NUM_STEPS):
        engine.step()
    total = time.perf_counter() - start
    native.step = step  # type: ignore[method-assign]
    return (total - seconds[0]) / total


def main() -> None:
    args = child.parser(__doc__).parse_args()
    model = glimmer.load(args.model, num_threads=args.threads)
    llm = LLM(model, max_num_seqs=2)
    llm.generate("warm up", SamplingParams(max_new_tokens=8))
    result = {
        "overhead": overhead(model),
        **prefix_times(llm, 0),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
