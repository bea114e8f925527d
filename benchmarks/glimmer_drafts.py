"""What drafts gain: the same answers with and without them. Runs in a process of its own.

A model as small as the demo neither edits nor quotes as it is told. So the answer to these requests
is given: each step computes and samples every row, drafts included, and only then is each chosen
token replaced by the answer's at that position. What a draft is compared with is the answer of a
model that does as it is told; what it costs is measured. The other answers are the model's own.
"""

from __future__ import annotations

import bisect
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import glimmer
from benchmarks import child
from glimmer import LLM, SamplingParams
from glimmer.loader import LoadedModel
from glimmer.native import KVCache, StepInput, StepResult

NUM_PAIRS = 5
ANSWER_TOKENS = 240
_CODE_LINES = 80
STORY = "Once upon a time a fisherman found a lamp, and this is what he did with it:"
PROSE = "The history of the city begins"


@dataclass(frozen=True, slots=True)
class Work:
    prompt_ids: list[int]
    temperature: float = 0.0
    answer_ids: list[int] | None = None
    """None for the model's own."""


def works(model: LoadedModel) -> dict[str, Work]:
    """The work by name. The code and the text to quote are the standard library's."""
    encode = model.tokenizer.encode
    code = "\n".join(inspect.getsource(bisect).splitlines()[:_CODE_LINES]) + "\n"
    text = "\n".join(
        " ".join((inspect.getdoc(x) or "").split()) for x in (json, inspect, str, dict)
    )

    def asked(request: str, answer: str) -> Work:
        prompt_ids = model.chat_template.encode([{"role": "user", "content": request}])
        return Work(prompt_ids, answer_ids=encode(answer)[:ANSWER_TOKENS])

    return {
        "edit": asked(
            f"Rename `key` to `rank` in this code and print all of it:\n\n```python\n{code}```",
            f"```python\n{code.replace('key', 'rank')}```",
        ),
        "quote": asked(f"Repeat this text word for word:\n\n{text}", text),
        "own copy": Work(encode(f"```python\n{code}```\n\nThe same code again:\n\n```python\n")),
        "own prose": Work(encode(PROSE)),
        "own story, drawn": Work(encode(STORY), temperature=1.0),
    }


@contextmanager
def answering(model: LoadedModel, work: Work) -> Iterator[None]:
    """Meanwhile the model's choices are those of the answer, where one is given."""
    native, step = model.native, model.native.step
    answer_ids = np.array(work.answer_ids or [], np.int32)

    def scripted(cache: KVCache, given: StepInput) -> StepResult:
        result = step(cache, given)
        if given.sampling is None:
            return result
        at = np.minimum(given.sampling.position - len(work.prompt_ids), len(answer_ids) - 1)
        return replace(result, token_ids=answer_ids[at])

    if work.answer_ids is not None:
        native.step = scripted  # type: ignore[method-assign]
    try:
        yield
    finally:
        native.step = step  # type: ignore[method-assign]


def gains(llm: LLM, work: Work) -> dict[str, Any]:
    """``gain``: how many times as fast with drafts, for each pair. ``accepted``: drafts that were
    right per step, and ``right`` their share."""
    ratios, before, steps = [], llm.stats, 0
    for seed in range(NUM_PAIRS):
        seconds, tokens = {}, {}
        for speculation in (False, True) if seed % 2 else (True, False):
            num_steps = llm.stats.num_steps
            params = SamplingParams(
                temperature=work.temperature,
                top_p=1,
                seed=seed,
                max_new_tokens=len(work.answer_ids or ()) or ANSWER_TOKENS,
                ignore_eos=True,
                speculation=speculation,
            )
            with answering(llm.model, work):
                output = llm.generate([work.prompt_ids], params)[0]
            timing = output.timing
            seconds[speculation] = timing.total_s - timing.time_to_first_token_s
            tokens[speculation] = output.token_ids
            steps += (llm.stats.num_steps - num_steps) * speculation
        assert tokens[True] == tokens[False], "drafts changed an answer"
        ratios.append(seconds[False] / seconds[True])
    accepted = llm.stats.num_accepted_drafts - before.num_accepted_drafts
    num_drafts = llm.stats.num_drafts - before.num_drafts
    return {
        "gain": ratios,
        "accepted": accepted / steps,
        "right": accepted / max(num_drafts, 1),
    }


def main() -> None:
    parser = child.parser(__doc__)
    parser.add_argument("--activations", choices=["auto", "int8", "int16"], default="auto")
    args = parser.parse_args()
    model = glimmer.load(args.model, num_threads=args.threads, activations=args.activations)
    llm = LLM(model, max_num_seqs=2)
    llm.generate("warm up", SamplingParams(max_new_tokens=8))
    print(json.dumps({name: gains(llm, work) for name, work in works(model).items()}), flush=True)


if __name__ == "__main__":
    main()
