"""The engine on torch: the native engine's tokens, with its scheduling, cache and sampler."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glimmer
from glimmer import LLM, Constraint, SamplingParams
from glimmer.errors import InvalidParameterError, OutOfMemoryError
from glimmer.hf import paged, runner
from glimmer.hf.devices import find_device
from tests.support import golden
from tests.test_export import CHATS, LAYOUTS, folder


def both(path: Path, family: str, **options: Any) -> tuple[LLM, LLM]:
    """The native engine and torch, both in float32."""
    models = (
        glimmer.load(path, weights="float32", family=family, num_threads=1),
        runner.load(path, device="cpu", dtype="float32", family=family),
    )
    return tuple(LLM(m, max_model_len=128, **options) for m in models)  # type: ignore[return-value]


def prompts(llm: LLM) -> list[list[int]]:
    rng = np.random.default_rng(3)
    start = llm.model.chat_template.encode(CHATS[0])
    made = [start]
    for length in (3, 40, 64):
        ids = rng.integers(300, 340, length).tolist()
        if (blanks := llm.model.architecture.blanks) is not None:
            ids += [blanks.blank_ids[0], blanks.start_id]
        made.append(ids)
    return made


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_greedy_tokens_of_a_batch(tmp_path: Path, family: str, layout: str) -> None:
    native, torched = both(folder(tmp_path, family, layout), family, max_num_seqs=3)
    params = SamplingParams(temperature=0, max_new_tokens=24, ignore_eos=True, logprobs=2)
    expected = native.generate(prompts(native), params)
    outputs = torched.generate(prompts(torched), params)
    for ours, theirs in zip(expected, outputs, strict=True):
        assert theirs.token_ids == ours.token_ids
        assert theirs.logprobs is not None
        assert ours.logprobs is not None
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert abs(a.logprob - b.logprob) < 1e-3
            assert [i for i, _ in a.top] == [i for i, _ in b.top]


@pytest.mark.parametrize(
    "name", ["chatglm-6b-ptuning-proj", "chatglm2-6b-ptuning", "chatglm3-6b-ptuning"]
)
def test_a_trained_prefix(name: str) -> None:
    native, torched = both(golden.folder(name), None)  # type: ignore[arg-type]
    from tests.test_golden import GREEDY_STEPS, results, sequences

    params = SamplingParams(temperature=0, max_new_tokens=GREEDY_STEPS, ignore_eos=True)
    for row, (_, ids) in enumerate(sequences(name)):
        expected = results(name)["greedy_ids"][row, -GREEDY_STEPS:].tolist()
        assert list(native.generate([ids], params)[0].token_ids) == expected
        assert list(torched.generate([ids], params)[0].token_ids) == expected


def test_sampled_tokens_and_prefix_cache(tmp_path: Path) -> None:
    native, torched = both(folder(tmp_path, "glm4", "native"), "glm4")
    params = SamplingParams(temperature=1.2, top_p=0.9, top_k=40, seed=7, max_new_tokens=16,
                            repetition_penalty=1.1, ignore_eos=True)  # fmt: skip
    prompt = prompts(native)[-1]
    (expected,) = native.generate([prompt], params)
    for _ in range(2):  # the second one finds the prompt in the cache
        (output,) = torched.generate([prompt], params)
        assert output.token_ids == expected.token_ids
    assert torched.stats.num_cached_tokens > 0


def test_constraints_and_stop_strings(tmp_path: Path) -> None:
    _, torched = both(folder(tmp_path, "glm4", "native"), "glm4")
    params = SamplingParams(temperature=0, max_new_tokens=30, constraint=Constraint.choice(
        ["你好", "fox"]))  # fmt: skip
    assert torched.chat(CHATS[0], params).text in ("你好", "fox")
    params = SamplingParams(temperature=0, max_new_tokens=30, ignore_eos=True)
    text = torched.chat(CHATS[0], params).text
    stop = text[len(text) // 2 :][:2]
    stopped = torched.chat(CHATS[0], dataclasses.replace(params, stop=(stop,)))
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_a_small_cache_preempts(tmp_path: Path) -> None:
    model = runner.load(folder(tmp_path, "glm4", "native"), device="cpu", dtype="float32")
    params = SamplingParams(temperature=0, max_new_tokens=60, ignore_eos=True)
    texts = np.random.default_rng(3).integers(300, 340, (2, 30)).tolist()
    block_bytes = 32 * 2 * model.architecture.kv_bytes_per_token
    roomy, tight = (
        LLM(model, max_model_len=96, max_num_seqs=2, speculation=False, kv_memory=n * block_bytes)
        for n in (6, 4)
    )
    expected = [o.token_ids for o in roomy.generate(texts, params)]
    assert [o.token_ids for o in tight.generate(texts, params)] == expected
    assert (roomy.stats.num_preemptions, tight.stats.num_preemptions) == (0, 1)


def test_what_lies_in_the_cache_from_before_does_not_matter(tmp_path: Path) -> None:
    """Memory that nobody has written may hold NaN."""
    model = runner.load(folder(tmp_path, "chatglm", "official"), device="cpu", dtype="float32")
    llm = LLM(model, max_model_len=96, prefix_caching=False)
    params = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
    chat = CHATS[1]
    expected = llm.chat(chat, params).token_ids
    for page in llm._session.engine._cache.pages:  # type: ignore[attr-defined]
        page.fill_(float("nan"))
    assert llm.chat(chat, params).token_ids == expected


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_hidden_states_and_embeddings(tmp_path: Path, family: str, layout: str) -> None:
    path = folder(tmp_path, family, layout)
    native = glimmer.load(path, weights="float32", num_threads=1, family=family)
    model = runner.load(path, device="cpu", family=family)
    assert model.family == family
    assert model.runner.weights_bytes > 0
    for ids in prompts(LLM(native, max_model_len=128))[:3]:
        logits, hidden = native.trace(ids)
        found = model.trace(ids)
        assert found[1].shape == (native.architecture.num_layers + 1, len(ids), 64)
        np.testing.assert_allclose(found[0], logits, atol=2e-4, rtol=0)
        np.testing.assert_allclose(found[1], hidden, atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(model.logits(ids), logits, atol=2e-4, rtol=0)
        np.testing.assert_allclose(model.embed(ids), native.embed(ids), atol=1e-5)


def test_what_is_the_native_engines_alone(tmp_path: Path) -> None:
    model = runner.load(folder(tmp_path, "glm45", "native"), device="cpu")
    with pytest.raises(InvalidParameterError, match="native engine"):
        _ = model.native
    with pytest.raises(InvalidParameterError, match="int8"):
        LLM(model, kv_cache="int8", max_model_len=64)


def test_a_prompt_of_several_steps_and_several_threads(tmp_path: Path) -> None:
    """Rows of a step whose logits nobody wants; steps that take turns."""
    path = folder(tmp_path, "glm4", "native", max_position=1024)
    native, model = glimmer.load(path, weights="float32"), runner.load(path, device="cpu")
    params = SamplingParams(temperature=0, max_new_tokens=8, ignore_eos=True)
    texts = np.random.default_rng(3).integers(300, 340, (2, 600)).tolist()
    expected = [o.token_ids for o in LLM(native, max_model_len=700).generate(texts, params)]
    llm = LLM(model, max_model_len=700)
    assert [o.token_ids for o in llm.generate(texts, params)] == expected
    embedded = native.embed(texts[0])
    with ThreadPoolExecutor(4) as pool:
        vectors = [pool.submit(model.embed, texts[0]) for _ in range(4)]
        assert [o.token_ids for o in llm.generate(texts, params)] == expected
        for vector in vectors:
            np.testing.assert_allclose(vector.result(), embedded, atol=1e-5)


def test_half_precision_keeps_its_own_type_in_the_cache(tmp_path: Path) -> None:
    model = runner.load(folder(tmp_path, "glm4", "native"), device="cpu", dtype="bfloat16")
    cache = model.runner.new_cache(2, model.default_kv_dtype)
    assert {page.dtype for page in cache.pages} == {torch.bfloat16}  # type: ignore[attr-defined]
    assert cache.size_bytes == 2 * 32 * model.architecture.kv_bytes_per_token


def test_a_step_without_memory_is_taken_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only a request that does not fit alone ends, with the reason."""
    model = runner.load(folder(tmp_path, "glm4", "native"), device="cpu", dtype="float32")
    params = SamplingParams(temperature=0, max_new_tokens=8, ignore_eos=True)
    texts = [list(range(300, 320)), list(range(310, 340)), list(range(305, 330))]
    expected = [o.token_ids for o in LLM(model, max_model_len=64).generate(texts, params)]

    def small(cache: Any, step: Any, *args: Any) -> Any:
        if len(step.query_lengths) > 1 or step.kv_lengths.max() > 36:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return paged.PagedStep(cache, step, *args)

    monkeypatch.setattr(runner, "PagedStep", small)
    first, long, last = LLM(model, max_model_len=64).generate(texts, params)
    assert [first.token_ids, last.token_ids] == [expected[0], expected[2]]
    assert isinstance(long.error, OutOfMemoryError)
    assert "does not fit on cpu" in str(long.error)
    assert long.token_ids == expected[1][: len(long.token_ids)]


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("meta") == torch.device("meta")
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    absent = [kind for kind in ("cuda", "mps") if not getattr(torch, kind).is_available()]
    for name in ("tpu", "cuda:77", *absent):
        with pytest.raises(InvalidParameterError, match=rf"no device '{name}'.*has cpu"):
            find_device(name)


@pytest.mark.parametrize("method", ["parts", "substitute"])
def test_blanks_of_a_text(tmp_path: Path, method: Any) -> None:
    """Layouts with several blanks have positions and contexts of their own."""
    native, torched = both(folder(tmp_path, "chatglm", "official"), "chatglm")
    params = SamplingParams(temperature=0, max_new_tokens=6, ignore_eos=True)
    text = "你好[MASK]，今天[MASK]天气"
    expected = native.infill(text, params, method=method)
    assert torched.infill(text, params, method=method).token_ids == expected.token_ids
