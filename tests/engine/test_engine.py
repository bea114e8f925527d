"""Many requests at once, each as if alone: whatever runs beside a request, however often it is
preempted, forked, drafted for or found in the prefix cache, it gets the tokens, log probabilities
and end that it gets by itself, bit for bit; and after each step every block is accounted for.
"""

from __future__ import annotations

import functools
import gc
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glimmer.architecture import Architecture, Blanks, Rope, span_layout
from glimmer.engine import Engine, LoopLimits, Request, SamplingParams, StepOutput
from glimmer.engine.step_costs import StepCosts
from glimmer.errors import (
    GenerationError,
    InvalidParameterError,
    OutOfMemoryError,
    PromptTooLongError,
    QueueFullError,
)
from glimmer.native import BLOCK_SIZE, KVCache, NativeModel, StepInput, StepResult
from tests.support.tiny import (
    PLAIN,
    KVDType,
    TinyModel,
    random_architecture,
    random_weights,
    seeded,
)

MAX_MODEL_LEN = 200
START, BLANK = 0, 1

CAUSAL = random_architecture(
    seeded(4),
    **{
        **PLAIN,
        **{"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
        **{"hidden_size": 16, "vocab_size": 24},
    },
)
# ChatGLM-6B's kind: a context that all of a text sees, and two positions for each token.
CONTEXT = random_architecture(
    seeded(5),
    **{
        **{"num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "hidden_size": 16},
        **{"vocab_size": 24, "norm": "layer", "norm_place": "pre", "residual": "normed"},
        **{"residual_scale": 2.0, "mask": "prefix", "mlp": "gelu_tanh", "qk_norm": False},
        **{
            "experts": None,
            "prefix_length": 3,
            "blanks": Blanks(start_id=START, blank_ids=(BLANK,)),
        },
    },
    rope=Rope(dims=4, base=1e4, pairing="half", positions="2d"),
)


@functools.cache
def native(architecture: Architecture) -> NativeModel:
    return TinyModel.random(architecture).native(num_threads=1)


@pytest.fixture(scope="module", autouse=True)
def _models() -> Iterator[None]:
    yield
    native.cache_clear()


def prompt_of(architecture: Architecture, token_ids: Sequence[int]) -> tuple[int, ...]:
    if architecture.blanks is None:
        return tuple(token_ids)
    return (*(2 + t % 22 for t in token_ids), BLANK, START)


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: str | None = None
    error: Exception | None = None
    cached: int = 0

    def take(self, output: StepOutput) -> None:
        assert self.reason is None, "an answer goes on after its end"
        if output.token_id is not None:
            self.token_ids.append(output.token_id)
        if output.logprobs is not None:
            self.logprobs.append(output.logprobs.logprob)
        self.reason, self.error = output.finish_reason, output.error
        self.cached = output.num_cached_tokens


def make_engine(
    architecture: Architecture, kv: KVDType = "float16", blocks: int = 64, **values: Any
) -> Engine:
    model = native(architecture)
    options = {"max_num_seqs": 8, "max_model_len": min(MAX_MODEL_LEN, blocks * BLOCK_SIZE)}
    return Engine(model, KVCache(model, blocks, kv), **{**options, **values})


def run(engine: Engine, check: bool = True) -> dict[int, Answer]:
    answers: dict[int, Answer] = defaultdict(Answer)
    while engine.num_unfinished:
        for output in engine.step():
            answers[output.request_id].take(output)
        if check:
            engine.check_integrity()
    return answers


_ALONE: dict[str, Answer] = {}


def alone(architecture: Architecture, kv: KVDType, request: Request) -> Answer:
    """The same request in an engine without cache, drafts and company."""
    plain = replace(request, request_id=0, priority=0, fork_of=None)
    key = repr((architecture, kv, plain))
    if key not in _ALONE:
        engine = make_engine(
            architecture, kv, max_num_seqs=1, prefix_caching=False, speculation=False
        )
        engine.add_request(plain)
        _ALONE[key] = run(engine)[0]
    return _ALONE[key]


def request_of(request_id: int, prompt: Sequence[int], **values: Any) -> Request:
    own = ("priority", "fork_of", "loop_limits", "make_constraint", "layout")
    options = {name: values.pop(name) for name in own if name in values}
    seed = values.pop("seed", 0)
    stops = frozenset(values.pop("stops", ()))
    values = {"temperature": 0.0, "max_new_tokens": 20, **values}
    return Request(request_id, tuple(prompt), SamplingParams(**values), stops, seed, **options)


def test_a_layout_is_part_of_what_the_prefix_cache_knows() -> None:
    """The same tokens at other places are another text, but for the context, which they share."""
    prompt = [*(2 + i % 22 for i in range(40)), START, *(2 + i % 20 for i in range(30))]
    prompt += [START, *(3 + i % 19 for i in range(21))]
    layouts = [span_layout(40, spans) for spans in ([(5, 31), (30, 22)], [(30, 31), (5, 22)])]
    shared = make_engine(CONTEXT)
    for layout in (*layouts, layouts[0]):
        request = request_of(0, prompt, layout=layout, logprobs=0)
        shared.add_request(request)
        answer = run(shared)[0]
        assert answer.logprobs == alone(CONTEXT, "float16", request).logprobs
        assert answer.cached in (0, BLOCK_SIZE, 2 * BLOCK_SIZE)
    assert answer.cached == 2 * BLOCK_SIZE
    requests = [request_of(0, prompt, layout=layout, logprobs=0) for layout in layouts]
    first, second = (alone(CONTEXT, "float16", request) for request in requests)
    assert first.logprobs != second.logprobs
    with pytest.raises(InvalidParameterError, match="in their order alone"):
        make_engine(CAUSAL).add_request(request_of(0, prompt, layout=layouts[0]))


# Of few different tokens, so that beginnings and drafts are often shared.
TOKENS = st.integers(2, 4)
PROMPTS = st.one_of(
    st.lists(TOKENS, min_size=1, max_size=100),
    st.builds(lambda t, n: [t] * n, TOKENS, st.integers(1, 120)),
)


@st.composite
def requests(draw: st.DrawFn, architecture: Architecture) -> list[Request]:
    made: list[Request] = []
    for request_id in range(draw(st.integers(1, 9))):
        fork_of = None
        if made and draw(st.integers(0, 3)) == 0:
            leader = draw(st.sampled_from(made))
            prompt, fork_of = leader.prompt_token_ids, leader.request_id
        elif made and draw(st.booleans()):
            # The beginning of another one's text, and something else behind it.
            other = draw(st.sampled_from(made)).prompt_token_ids
            cut = draw(st.integers(0, len(other) - 1))
            prompt = prompt_of(architecture, [*other[:cut], *draw(PROMPTS)][:120])
        else:
            prompt = prompt_of(architecture, draw(PROMPTS))
        made.append(
            request_of(
                request_id,
                prompt,
                fork_of=fork_of,
                seed=draw(st.integers(0, 3)),
                priority=draw(st.sampled_from([0, 0, 0, -1, 1])),
                temperature=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
                max_new_tokens=draw(st.integers(1, 70)),
                top_p=draw(st.sampled_from([1.0, 0.8])),
                logprobs=draw(st.sampled_from([None, 0, 2])),
                frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.5])),
                repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3])),
                loop_limits=draw(st.sampled_from([None, LoopLimits(min_tokens=12, max_period=5)])),
                stops=draw(st.sampled_from([(), (5, 9)])),
            )
        )
    return made


@pytest.mark.parametrize("kv", ["float16", "int8"])
@pytest.mark.parametrize("architecture", [CAUSAL, CONTEXT], ids=["causal", "context"])
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_request_is_answered_as_if_alone(
    architecture: Architecture, kv: KVDType, data: st.DataObject
) -> None:
    coming = data.draw(requests(architecture))
    # From room for one to room for all.
    longest = max(
        min(len(r.prompt_token_ids) + r.params.max_new_tokens, MAX_MODEL_LEN) for r in coming
    )
    blocks = -(-longest // BLOCK_SIZE) + data.draw(st.integers(0, 8))
    free_drafts = data.draw(st.booleans())
    engine = make_engine(
        architecture,
        kv,
        blocks,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=data.draw(st.integers(1, 5)),
        max_batch_tokens=data.draw(st.sampled_from([5, 8, 40, 256])),
        prefix_caching=data.draw(st.booleans()),
        speculation=free_drafts or data.draw(st.booleans()),
    )
    if free_drafts:
        engine._scheduler._step_costs = _Free()
    answers: dict[int, Answer] = defaultdict(Answer)
    aborted: set[int] = set()
    waiting = list(coming)
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    for _ in range(10_000):
        while waiting and chance.random() < 0.7:
            engine.add_request(waiting.pop(0))
        if chance.random() < 0.05:
            request_id = chance.randint(0, len(coming))
            if request_id not in {r.request_id for r in waiting}:
                engine.abort(request_id)
                aborted.add(request_id)
        for output in engine.step():
            answers[output.request_id].take(output)
        engine.check_integrity()
        if not waiting and not engine.num_unfinished:
            break
    else:
        pytest.fail("a request was never answered")
    assert engine.stats.num_free_blocks == engine.stats.num_blocks == blocks
    for request in coming:
        answer, expected = answers[request.request_id], alone(architecture, kv, request)
        if request.request_id in aborted and answer.reason is None:
            assert answer.token_ids == expected.token_ids[: len(answer.token_ids)]
        else:
            assert answer.token_ids == expected.token_ids
            assert answer.logprobs == expected.logprobs
            assert answer.reason == expected.reason


def test_a_request_that_is_refused_leaves_the_others_alone() -> None:
    engine = make_engine(CAUSAL, blocks=4, max_model_len=200, max_waiting=2)
    with pytest.raises(InvalidParameterError, match="no token"):
        engine.add_request(request_of(0, []))
    with pytest.raises(InvalidParameterError, match="Token id 24 in the prompt"):
        engine.add_request(request_of(0, [24]))
    with pytest.raises(PromptTooLongError, match="200 tokens, but the context holds 200"):
        engine.add_request(request_of(0, [2] * 200))
    with pytest.raises(OutOfMemoryError, match=r"may take 129 tokens, but the KV cache holds 128"):
        engine.add_request(request_of(0, [2] * 100, max_new_tokens=29))
    for request_id in (1, 2):
        engine.add_request(request_of(request_id, [2, 3]))
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        engine.add_request(request_of(3, [2, 3]))
    assert set(run(engine)) == {1, 2}


class _Free(StepCosts):
    """Rows that cost nothing: whatever may follow is drafted, however many steps were timed."""

    def knows(self, company: object) -> bool:
        return True

    def of(self, num_rows: int) -> float:
        return 1 + 1e-6 * num_rows


class _Failing:
    """A model whose steps fail while a certain token is among their inputs."""

    def __init__(self, model: NativeModel, token: int, error: type[Exception]) -> None:
        self.architecture = model.architecture
        self._model, self._token, self._error = model, token, error

    def step(self, cache: KVCache, step: StepInput) -> StepResult:
        if self._token in step.token_ids:
            raise self._error("a mistake")
        return self._model.step(cache, step)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (InvalidParameterError, InvalidParameterError),
        (MemoryError, OutOfMemoryError),
    ],
)
def test_a_request_that_fails_ends_alone(error: type[Exception], seen: type[Exception]) -> None:
    model = native(CAUSAL)
    failing: Any = _Failing(model, 23, error)
    engine = Engine(failing, KVCache(model, 64), max_num_seqs=8, max_model_len=MAX_MODEL_LEN)
    good = [request_of(i, [2, 3, 4 + i], logit_bias={23: -100.0}) for i in range(3)]
    for request in (good[0], request_of(9, [5, 23, 6]), *good[1:]):
        engine.add_request(request)
    answers = run(engine)
    assert answers[9].reason == "error"
    assert isinstance(answers[9].error, seen)
    for request in good:
        assert answers[request.request_id].token_ids == alone(CAUSAL, "float16", request).token_ids
    assert engine.stats.num_free_blocks == 64


class _Form:
    """Allows 7 as often as is said, then nothing more; may refuse to say what comes after two."""

    def __init__(self, breaks: bool, times: int = 3) -> None:
        self._breaks, self._times, self._count = breaks, times, 0

    @property
    def is_finished(self) -> bool:
        return self._count == self._times

    def forced(self) -> list[int]:
        return [7] * (self._times + 2)

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        return min(len(token_ids), self._times - self._count)

    def fill(self, drafts: Sequence[int], masks: npt.NDArray[np.int32]) -> None:
        if self._breaks and self._count == 2:
            raise GenerationError("lost the thread")
        masks[:] = 1 << 7

    def accept(self, token_id: int) -> None:
        assert token_id == 7
        self._count += 1


@pytest.mark.parametrize("speculation", [False, True])
def test_a_form_decides_and_may_fail_alone(speculation: bool) -> None:
    engine = make_engine(CAUSAL, speculation=speculation)
    whole = request_of(0, [2, 3], make_constraint=lambda: _Form(False))
    broken = request_of(1, [2, 4], make_constraint=lambda: _Form(True))
    free = request_of(2, [2, 5])
    for request in (whole, broken, free):
        engine.add_request(request)
    answers = run(engine)
    assert (answers[0].token_ids, answers[0].reason) == ([7, 7, 7], "stop")
    assert (answers[1].token_ids, answers[1].reason) == ([7, 7], "error")
    assert answers[2].token_ids == alone(CAUSAL, "float16", free).token_ids
    if speculation:
        engine._scheduler._step_costs = _Free()
        engine.add_request(request_of(3, [2, 3], make_constraint=lambda: _Form(False, 12)))
        steps = engine.stats.num_steps
        assert run(engine)[3].token_ids == [7] * 12
        assert engine.stats.num_steps == steps + 2, "what is forced comes at once"


def test_logits_that_are_not_finite_end_one_request() -> None:
    weights = random_weights(CAUSAL, 0)
    weights["embedding.weight"][23] = np.nan
    model = TinyModel.of(CAUSAL, weights).native()
    engine = Engine(model, KVCache(model, 64), max_num_seqs=8, max_model_len=MAX_MODEL_LEN)
    engine.add_request(request_of(0, [2, 23, 3]))
    engine.add_request(request_of(1, [2, 3], logit_bias={23: -100.0}))
    answers = run(engine)
    assert isinstance(answers[0].error, GenerationError)
    assert (len(answers[1].token_ids), answers[1].reason) == (20, "length")


@pytest.mark.parametrize("architecture", [CAUSAL, CONTEXT], ids=["causal", "context"])
def test_what_the_cache_held_is_told_and_changes_nothing(architecture: Architecture) -> None:
    engine = make_engine(architecture)
    text = prompt_of(architecture, [*range(2, 22)] * 5)
    longer = prompt_of(architecture, [*range(2, 22)] * 5 + [9])
    answers = []
    for request_id, prompt in enumerate((text, text, longer)):
        engine.add_request(request_of(request_id, prompt))
        answers.append(run(engine)[request_id])
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[2].token_ids == alone(architecture, "float16", request_of(2, longer)).token_ids
    # A context that all its tokens see is another one from its first token on.
    expected = [0, 96, 96] if architecture is CAUSAL else [0, 96, 0]
    assert [a.cached for a in answers] == expected


def test_answers_to_one_prompt_share_its_blocks() -> None:
    engine = make_engine(CAUSAL, blocks=9, max_num_seqs=4)
    prompt = [2 + i % 20 for i in range(150)]
    for request_id in range(4):
        engine.add_request(
            request_of(
                request_id,
                prompt,
                temperature=1.0,
                seed=request_id,
                max_new_tokens=8,
                fork_of=0 if request_id else None,
            )
        )
    answers = run(engine)
    # Four copies of the prompt would need twenty blocks.
    assert engine.stats.num_preemptions == 0
    assert engine.stats.num_cached_tokens == 3 * 149
    for request_id, answer in answers.items():
        request = request_of(request_id, prompt, temperature=1.0, seed=request_id, max_new_tokens=8)
        assert answer.token_ids == alone(CAUSAL, "float16", request).token_ids


MEMORY = Path("/proc/self/statm")


@pytest.mark.skipif(not MEMORY.exists(), reason="reads Linux's /proc")
def test_ten_thousand_requests_leave_no_trace() -> None:
    engine = make_engine(CAUSAL, blocks=24, max_num_seqs=8)
    chance = random.Random(0)
    sizes = []
    for batch in range(100):
        for request_id in range(batch * 100, batch * 100 + 100):
            prompt = [chance.randint(2, 23) for _ in range(chance.randint(1, 60))]
            engine.add_request(request_of(request_id, prompt, max_new_tokens=4))
            if chance.random() < 0.1:
                engine.abort(request_id - chance.randint(0, 5))
        answers = run(engine, check=False)
        assert all(a.reason == "length" for a in answers.values() if len(a.token_ids) == 4)
        engine.check_integrity()
        gc.collect()
        sizes.append(int(MEMORY.read_text().split()[1]) * 4096)
    assert engine.stats.num_free_blocks == 24
    assert max(sizes[50:]) - max(sizes[:20]) < 2**20
