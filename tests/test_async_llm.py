"""Many tasks at one model, through asyncio."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import glimmer
from glimmer.errors import (
    GenerationError,
    InvalidParameterError,
    PromptTooLongError,
    QueueFullError,
)
from glimmer.loader import LoadedModel
from tests.support.tiny_gguf import tiny_gguf

GREEDY = glimmer.SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
LONG = glimmer.SamplingParams(temperature=0, max_new_tokens=4000, ignore_eos=True)
MESSAGES = [{"role": "user", "content": "Hello"}]
PROMPTS = ["The quick", "你好", "def f(", "dog", "a much longer prompt about foxes and dogs"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tmp_path_factory.mktemp("async") / "tiny.gguf"
    return glimmer.load(tiny_gguf(path, max_position=4096))


@pytest.fixture(scope="module")
def expected(model: LoadedModel) -> dict[str, tuple[int, ...]]:
    llm = glimmer.LLM(model)
    return {prompt: llm.generate(prompt, GREEDY)[0].token_ids for prompt in PROMPTS}


def with_llm(
    model: LoadedModel, work: Callable[[glimmer.AsyncLLM], Coroutine[Any, Any, None]], **values: Any
) -> None:
    async def main() -> None:
        async with glimmer.AsyncLLM(model, **values) as llm:
            await asyncio.wait_for(work(llm), 60)
            await settled(llm)
        assert not llm._thread.is_alive()

    asyncio.run(main())


async def settled(llm: glimmer.AsyncLLM) -> None:
    """Wait until nothing runs; whatever ended, all blocks are free."""
    while (stats := llm.stats).num_running or stats.num_waiting:
        await asyncio.sleep(0.01)
    assert stats.num_free_blocks == stats.num_blocks


def test_tasks_side_by_side(model: LoadedModel, expected: dict[str, tuple[int, ...]]) -> None:
    async def work(llm: glimmer.AsyncLLM) -> None:
        async def whole(prompt: str) -> None:
            (output,) = await llm.generate(prompt, GREEDY)
            assert output.token_ids == expected[prompt]

        async def streamed(prompt: str) -> None:
            text = ""
            async for output in await llm.generate(prompt, GREEDY, stream=True):
                text += output.delta
            assert output.token_ids == expected[prompt]
            assert output.text == text
            assert output.finish_reason == "length"

        await asyncio.gather(*(f(p) for p in PROMPTS * 4 for f in (whole, streamed)))
        assert await llm.generate([], GREEDY) == []
        assert [o async for o in await llm.generate([], GREEDY, stream=True)] == []
        several = await llm.generate(PROMPTS, GREEDY)
        assert [o.token_ids for o in several] == [*expected.values()]
        assert llm.stats.num_prompt_tokens > 0

    with_llm(model, work, max_num_seqs=3)


def test_chat(model: LoadedModel) -> None:
    async def work(llm: glimmer.AsyncLLM) -> None:
        output = await llm.chat(MESSAGES, GREEDY)
        streamed = [o async for o in await llm.chat(MESSAGES, GREEDY, stream=True)]
        assert "".join(o.delta for o in streamed) == output.text
        assert llm.default_params == glimmer.LLM(model).default_params
        assert llm.max_model_len == 4096

    with_llm(model, work)


def test_a_slow_reader_misses_nothing(
    model: LoadedModel, expected: dict[str, tuple[int, ...]]
) -> None:
    async def work(llm: glimmer.AsyncLLM) -> None:
        outputs = []
        async for output in await llm.generate("The quick", GREEDY, stream=True):
            outputs.append(output)
            await asyncio.sleep(0.05)
        assert len(outputs) < 12, "what came meanwhile comes together"
        assert outputs[-1].token_ids == expected["The quick"]
        assert "".join(o.delta for o in outputs) == outputs[-1].text

    with_llm(model, work)


def test_cancelling_aborts(model: LoadedModel, expected: dict[str, tuple[int, ...]]) -> None:
    async def work(llm: glimmer.AsyncLLM) -> None:
        task = asyncio.create_task(llm.generate("The quick", LONG))
        waiting = asyncio.create_task(llm.generate("dog", LONG))
        while not llm.stats.num_running:
            await asyncio.sleep(0.001)
        for cancelled in (task, waiting):
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        await settled(llm)
        (output,) = await llm.generate("dog", GREEDY)
        assert output.token_ids == expected["dog"]

    with_llm(model, work, max_num_seqs=1)


def test_leaving_a_stream_aborts(model: LoadedModel) -> None:
    async def work(llm: glimmer.AsyncLLM) -> None:
        stream = await llm.generate("The quick", LONG, stream=True)
        async for _ in stream:
            break
        await stream.aclose()
        await settled(llm)

    with_llm(model, work)


@pytest.mark.timeout(30)
def test_a_stream_may_be_collected_while_its_thread_asks(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector comes when it likes."""

    async def work(llm: glimmer.AsyncLLM) -> None:
        dropped = [await llm.generate("The quick", LONG, stream=True)]
        engine = llm._session.engine
        wake = engine.wake

        def collect() -> None:
            dropped.clear()
            wake()

        monkeypatch.setattr(engine, "wake", collect)
        assert (await llm.generate("dog", GREEDY))[0].finish_reason == "length"
        await settled(llm)

    with_llm(model, work)


def test_refusals_reach_the_task_that_asked(model: LoadedModel) -> None:
    async def work(llm: glimmer.AsyncLLM) -> None:
        other = asyncio.create_task(llm.generate("dog", GREEDY))
        with pytest.raises(InvalidParameterError, match="Token id 5000"):
            await llm.generate([[5000]], GREEDY)
        with pytest.raises(InvalidParameterError, match="Token id 5000"):
            await llm.generate([[5000]], GREEDY, stream=True)
        with pytest.raises(PromptTooLongError):
            await llm.chat([{"role": "user", "content": "x" * 9000}], GREEDY)
        with pytest.raises(InvalidParameterError, match="robot"):
            await llm.chat([{"role": "robot", "content": "x"}], GREEDY)
        with pytest.raises(InvalidParameterError, match="cannot be streamed"):
            await llm.generate(
                "x", glimmer.SamplingParams(best_of=2, max_new_tokens=1), stream=True
            )
        assert (await other)[0].finish_reason == "length"

    with_llm(model, work)


def test_a_full_queue(model: LoadedModel) -> None:
    async def work(llm: glimmer.AsyncLLM) -> None:
        running = asyncio.create_task(llm.generate("The quick", LONG))
        while not llm.stats.num_running:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(llm.generate("dog", GREEDY))
        while not llm.stats.num_waiting:
            await asyncio.sleep(0.001)
        with pytest.raises(QueueFullError, match="1 requests wait already"):
            await llm.generate("dog", GREEDY)
        running.cancel()
        assert (await waiting)[0].finish_reason == "length"

    with_llm(model, work, max_num_seqs=1, max_waiting=1)


def test_closing_ends_what_runs(model: LoadedModel) -> None:
    async def main() -> None:
        llm = glimmer.AsyncLLM(model)
        task = asyncio.create_task(llm.generate("The quick", LONG))
        stream = await llm.generate("dog", LONG, stream=True)
        await anext(stream)
        await llm.aclose()
        await llm.aclose()
        with pytest.raises(GenerationError, match="was closed"):
            await task
        with pytest.raises(GenerationError, match="was closed"):
            async for _ in stream:
                pass
        with pytest.raises(GenerationError, match="was closed"):
            await llm.generate("dog", GREEDY)

    asyncio.run(main())


def test_a_mistake_of_ours_is_told_and_nobody_waits(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BaseException | None] = []
    monkeypatch.setattr("threading.excepthook", lambda args: seen.append(args.exc_value))

    async def main() -> None:
        llm = glimmer.AsyncLLM(model)

        def fail() -> None:
            raise ZeroDivisionError("a mistake")

        monkeypatch.setattr(llm._session.engine, "step", fail)
        with pytest.raises(GenerationError, match=r"has failed and is closed") as told:
            await llm.generate("The quick", GREEDY)
        # The message may go to a client of a server; the cause is for whoever calls us.
        assert str(told.value.__cause__) == "a mistake"
        await llm.aclose()

    asyncio.run(main())
    assert isinstance(seen[0], ZeroDivisionError)


def test_a_mistake_at_the_start_is_told_too(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threading.excepthook", lambda args: None)

    def fail(prepared: Any) -> None:
        raise ZeroDivisionError("a mistake")

    async def main() -> None:
        async with glimmer.AsyncLLM(model) as llm:
            monkeypatch.setattr(llm._session, "start", fail)
            asked = [llm.generate(prompt, GREEDY) for prompt in PROMPTS]
            told = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
        assert all(isinstance(error, GenerationError) for error in told)

    asyncio.run(main())


def test_embeddings_leave_answers_a_step_in_between(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    async def work(llm: glimmer.AsyncLLM) -> None:
        step, embed = llm._session.step, glimmer.loader.LoadedModel.embed
        monkeypatch.setattr(llm._session, "step", lambda: (done.append("step"), step()))
        monkeypatch.setattr(
            glimmer.loader.LoadedModel,
            "embed",
            lambda self, ids: (done.append("embed"), embed(self, ids))[1],
        )
        stream = await llm.generate("dog", LONG, stream=True)
        await anext(stream)
        done.clear()
        await asyncio.gather(*(llm.embed(PROMPTS * 4) for _ in range(4)))
        await stream.aclose()

    with_llm(model, work)
    pairs = list(itertools.pairwise(done))
    assert done.count("embed") == 80
    assert ("embed", "embed") not in pairs


def test_the_interpreter_may_go_while_it_runs(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", max_position=4096)
    code = f"""
import asyncio, glimmer
llm = glimmer.AsyncLLM({str(path)!r})
params = glimmer.SamplingParams(max_new_tokens=4000, ignore_eos=True)
async def main():
    async for _ in await llm.generate("x", params, stream=True):
        break
asyncio.run(main())
asyncio.run(llm.generate("y", glimmer.SamplingParams(max_new_tokens=2)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
