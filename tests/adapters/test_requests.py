"""Requests with adapters beside others: each gets what it would get alone."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from glimmer import LLM, AsyncLLM, RequestOutput, SamplingParams, load
from glimmer.engine import Request, engine
from glimmer.errors import (
    AdapterNotFoundError,
    InvalidParameterError,
    MalformedCheckpointError,
    UnsupportedArchitectureError,
)
from glimmer.families import all_families
from glimmer.loader import LoadedModel
from glimmer.merging import merge
from tests.support import adapters, families, golden, hf_folder
from tests.support.adapters import add_modules, file_tensors, random_modules, write_lora
from tests.support.tiny import random_text
from tests.test_export import LAYOUTS
from tests.test_golden import results, sequences
from tests.test_infilling import lively_folder, lively_weights

GREEDY = SamplingParams(temperature=0, max_new_tokens=16, ignore_eos=True, logprobs=3)
DRAWN = SamplingParams(temperature=1, seed=5, max_new_tokens=16, ignore_eos=True, logprobs=3)


def answers(outputs: list[RequestOutput]) -> list[tuple[object, ...]]:
    """Everything that the bits of an answer show in."""
    return [
        (
            o.token_ids,
            [(p.logprob, p.top) for p in o.logprobs or ()],
            *(c.token_ids for c in o.choices),
        )
        for o in outputs
    ]


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_as_the_merged_model(tmp_path: Path, family: str, layout: str) -> None:
    network = families.tiny_architecture(family)
    tensors = file_tensors(family, layout, network)
    # All but the experts that a router chooses.
    modules = {
        name: both for name, both in random_modules(tensors, 4).items() if ".experts." not in name
    }
    base = adapters.write_base(tmp_path / "base", family, layout, network, tensors)
    whole = adapters.write_base(
        tmp_path / "merged", family, layout, network, add_modules(tensors, modules, 3.0)
    )
    folder = write_lora(tmp_path / "a", modules, lora_alpha=12)
    rng = np.random.default_rng(0)
    prompts = [random_text(network, n, rng).tolist() for n in (20, 40, 3)]

    def open_llm(path: Path, **choices: object) -> LLM:
        model = load(path, weights="float32", family=family, num_threads=1)
        return LLM(model, max_num_seqs=3, max_model_len=128, **choices)  # type: ignore[arg-type]

    expected = open_llm(whole).generate(prompts, GREEDY)
    llm = open_llm(base, adapters={"a": folder})
    outputs = llm.generate(prompts, GREEDY, adapter="a")
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.token_ids == wanted.token_ids
        np.testing.assert_allclose(
            [p.logprob for p in output.logprobs or ()],
            [p.logprob for p in wanted.logprobs or ()],
            atol=2e-4,
        )
    plain = llm.generate(prompts, GREEDY)
    assert answers(plain) == answers(open_llm(base).generate(prompts, GREEDY))
    assert answers(plain) != answers(outputs)


@cache
def tiny_model(path: Path) -> LoadedModel:
    return load(path, weights="float32", num_threads=2, family="glm4")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two adapters of LoRA and a prefix."""
    path = tmp_path_factory.mktemp("adapters")
    network = families.tiny_architecture("glm4", vocab_size=544)
    tensors = file_tensors("glm4", "native", network)
    prefix = adapters.random_prefix(network, 40, 3).reshape(40, -1)
    return {
        "base": adapters.write_base(path / "base", "glm4", "native", network, tensors),
        "one": write_lora(path / "one", random_modules(tensors, 8, 1)),
        "two": write_lora(path / "two", random_modules(tensors, 3, 2, ["q_proj", "down_proj"])),
        "prefix": adapters.write_prefix(path / "prefix", prefix),
    }


def make_llm(folders: dict[str, Path], **choices: object) -> LLM:
    named = {name: folder for name, folder in folders.items() if name != "base"}
    given = {"max_num_seqs": 4, "max_model_len": 200, "adapters": named, **choices}
    return LLM(tiny_model(folders["base"]), **given)  # type: ignore[arg-type]


PROMPTS = [[7, 8, 9] * 20, [11, 12, 13, 14] * 12, list(range(20, 90))]
WHO = (None, "one", "two", "prefix")


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("speculation", [False, True])
def test_in_any_company_as_alone(
    folders: dict[str, Path], params: SamplingParams, speculation: bool
) -> None:
    alone: dict[tuple[int, str | None], object] = {}
    for i, prompt in enumerate(PROMPTS):
        for name in WHO:
            llm = make_llm(folders, prefix_caching=False, speculation=False)
            alone[i, name] = answers(llm.generate([prompt], params, adapter=name))[0]
    assert len({repr(a) for a in alone.values()}) == len(alone), "each has an answer of its own"
    # All at once, twice: the second time from the prefix cache.
    llm = make_llm(folders, speculation=speculation)
    for _ in range(2):
        prepared = [
            p for name in WHO for p in llm._session.prepare_prompts(PROMPTS, params, False, 0, name)
        ]
        outputs = answers(llm._finish(prepared))
        keys = [(i, name) for name in WHO for i in range(len(PROMPTS))]
        assert dict(zip(keys, outputs, strict=True)) == alone
    assert llm.stats.num_cached_tokens > 0


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_drafts_are_checked_with_the_sequences_own_adapter(
    folders: dict[str, Path], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a step takes the same time with drafts, they are made; no answer shows it."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(engine, "time", clock)
    params = replace(DRAWN, temperature=temperature, max_new_tokens=60)
    expected = {}
    for name in WHO:
        llm = make_llm(folders, speculation=False)
        expected[name] = answers(llm.generate([PROMPTS[0]], params, adapter=name))[0]
        assert llm.stats.num_drafts == 0
    llm = make_llm(folders)
    prepared = [
        p
        for name in WHO
        for p in llm._session.prepare_prompts([PROMPTS[0]], params, False, 0, name)
    ]
    assert dict(zip(WHO, answers(llm._finish(prepared)), strict=True)) == expected
    assert llm.stats.num_drafts > llm.stats.num_accepted_drafts > 0


def test_equal_prompts_of_different_adapters_share_no_block(folders: dict[str, Path]) -> None:
    llm = make_llm(folders)
    for name in WHO:
        (first,) = llm.generate([PROMPTS[2]], GREEDY, adapter=name)
        assert first.usage.cached_tokens == 0
        (again,) = llm.generate([PROMPTS[2]], GREEDY, adapter=name)
        assert again.usage.cached_tokens == 64
    # The content counts, and no name.
    llm.load_adapter("the same", folders["one"])
    (output,) = llm.generate([PROMPTS[2]], GREEDY, adapter="the same")
    assert output.usage.cached_tokens == 64
    llm.unload_adapter("two")
    llm.load_adapter("two", folders["one"])
    assert answers(llm.generate([PROMPTS[2]], GREEDY, adapter="two")) == answers([output])


def test_preempted_and_forked(folders: dict[str, Path]) -> None:
    params = SamplingParams(
        temperature=1, seed=3, n=3, max_new_tokens=40, ignore_eos=True, logprobs=1
    )
    expected = {
        name: answers(make_llm(folders).generate([PROMPTS[0]], params, adapter=name))[0]
        for name in WHO
    }
    model = tiny_model(folders["base"])
    block = 32 * model.architecture.kv_bytes_per_token * 2  # float32
    llm = make_llm(folders, kv_memory=9 * block)
    prepared = [
        p
        for name in WHO
        for p in llm._session.prepare_prompts([PROMPTS[0]], params, False, 0, name)
    ]
    outputs = answers(llm._finish(prepared))
    assert dict(zip(WHO, outputs, strict=True)) == expected
    assert llm.stats.num_preemptions > 0
    llm._session.engine.check_integrity()


def test_names(folders: dict[str, Path]) -> None:
    llm = make_llm(folders)
    assert llm.adapters == ["one", "two", "prefix"]
    with pytest.raises(AdapterNotFoundError, match="called 'three' here; there are one, two"):
        llm.generate([PROMPTS[0]], GREEDY, adapter="three")
    with pytest.raises(InvalidParameterError, match="called 'one' already"):
        llm.load_adapter("one", folders["two"])
    with pytest.raises(InvalidParameterError, match="not empty"):
        llm.load_adapter("", folders["two"])
    llm.unload_adapter("one")
    with pytest.raises(AdapterNotFoundError):
        llm.unload_adapter("one")
    assert llm.adapters == ["two", "prefix"]
    without = LLM(tiny_model(folders["base"]), max_model_len=64)
    with pytest.raises(AdapterNotFoundError, match="there is none: load it first"):
        without.generate([PROMPTS[0]], GREEDY, adapter="one")


def test_who_began_with_an_adapter_ends_with_it(folders: dict[str, Path]) -> None:
    llm = make_llm(folders)
    expected = make_llm(folders).generate([PROMPTS[1]], GREEDY, adapter="one")
    stream = llm.generate([PROMPTS[1]], GREEDY, adapter="one", stream=True)
    next(stream)
    llm.unload_adapter("one")
    *_, last = stream
    assert answers([last]) == answers(expected)


def test_an_adapter_of_nan_is_not_loaded(tmp_path: Path, folders: dict[str, Path]) -> None:
    network = families.tiny_architecture("glm4", vocab_size=544)
    modules = random_modules(file_tensors("glm4", "native", network), 2, 0, ["q_proj"])
    name, (a, b) = next(iter(modules.items()))
    b[3] = np.nan
    llm = make_llm(folders)
    with pytest.raises(MalformedCheckpointError, match="NaN"):
        llm.load_adapter("broken", write_lora(tmp_path / "a", {name: (a, b)}))
    assert "broken" not in llm.adapters


def test_experts_take_none_while_they_run(tmp_path: Path) -> None:
    network = families.tiny_architecture("glm45")
    tensors = file_tensors("glm45", "native", network)
    base = adapters.write_base(tmp_path / "base", "glm45", "native", network, tensors)
    folder = write_lora(tmp_path / "a", random_modules(tensors, 2, 0, ["experts.0.up_proj"]))
    with pytest.raises(UnsupportedArchitectureError, match="glimmer merge"):
        LLM(load(base, num_threads=1), max_model_len=64, adapters={"a": folder})


def test_loaded_while_others_are_answered(folders: dict[str, Path]) -> None:
    params = SamplingParams(temperature=0, max_new_tokens=100, ignore_eos=True, logprobs=3)
    expected = {
        name: answers(make_llm(folders).generate([PROMPTS[0]], params, adapter=name))
        for name in (None, "one")
    }

    async def talk() -> None:
        async with AsyncLLM(tiny_model(folders["base"]), max_num_seqs=4, max_model_len=200) as llm:
            plain = asyncio.create_task(llm.generate([PROMPTS[0]], params))
            await asyncio.sleep(0)
            with pytest.raises(AdapterNotFoundError):
                await llm.generate([PROMPTS[0]], params, adapter="one")
            await llm.load_adapter("one", folders["one"])
            assert llm.adapters == ["one"]
            adapted = await llm.generate([PROMPTS[0]], params, adapter="one")
            assert answers(adapted) == expected["one"]
            assert answers(await plain) == expected[None]
            llm.unload_adapter("one")
            assert llm.adapters == []

    asyncio.run(talk())


def adapted_requests() -> list[Request]:
    gc.collect()
    return [o for o in gc.get_objects() if type(o) is Request and o.adapter is not None]


def test_adapters_come_and_go_while_requests_run(folders: dict[str, Path]) -> None:
    """From other threads, by the hundred, under one name: an answer is that of what was called so
    when it was asked for, and nothing is left of those that are gone."""
    params = SamplingParams(temperature=0, max_new_tokens=24, ignore_eos=True)
    kinds = ("one", "two", "prefix")
    expected = {
        name: make_llm(folders).generate([PROMPTS[0]], params, adapter=name)[0].token_ids
        for name in WHO
    }
    allowed = {expected[name] for name in kinds}
    num_before = len(adapted_requests())  # of other tests

    async def talk() -> None:
        async with AsyncLLM(tiny_model(folders["base"]), max_num_seqs=4, max_model_len=200) as llm:
            found: list[RequestOutput] = []
            missed = 0

            async def ask() -> None:
                nonlocal missed
                try:
                    found.extend(await llm.generate([PROMPTS[0]], params, adapter="x"))
                except AdapterNotFoundError:
                    missed += 1

            async def swap() -> None:
                for i in range(30):
                    await llm.load_adapter("x", folders[kinds[i % 3]])
                    await asyncio.gather(*(ask() for _ in range(i % 4)), asyncio.sleep(0))
                    asking = [asyncio.create_task(ask()) for _ in range(2)]
                    await asyncio.sleep(0)
                    llm.unload_adapter("x")
                    await asyncio.gather(*asking)

            plain = [asyncio.create_task(llm.generate([PROMPTS[0]], params)) for _ in range(8)]
            await swap()
            for task in plain:
                assert (await task)[0].token_ids == expected[None]
            assert {output.token_ids for output in found} == allowed
            assert len(found) + missed == 30 * 2 + sum(i % 4 for i in range(30))
            assert (llm.adapters, llm._session.adapters.size_bytes) == ([], 0)
            # The engine holds none either.
            for _ in range(100):  # until its thread has heard that nobody waits any more
                if len(adapted_requests()) <= num_before:
                    break
                await asyncio.sleep(0.02)
            else:
                raise AssertionError("a request is held after its end")

    asyncio.run(talk())


def test_blanks_are_filled_with_an_adapter(tmp_path: Path) -> None:
    """All of a text with the adapter that was there when it began, as the merged model fills it."""
    architecture, weights = lively_weights()
    layout = all_families()["chatglm"].weight_map.layout("official")
    assert layout is not None
    modules = random_modules(families.assemble(layout, architecture, weights), 4)
    folder = write_lora(tmp_path / "a", modules)
    base = lively_folder(tmp_path / "base")
    merge(base, folder, tmp_path / "whole", dtype="float32")
    text, params = "The [MASK] jumps over [gMASK]", SamplingParams(temperature=0, max_new_tokens=5)
    llm, whole = (
        LLM(load(path, weights="float32", num_threads=1), max_model_len=128)
        for path in (base, tmp_path / "whole")
    )
    llm.load_adapter("a", folder)
    outputs = llm.infill(text, params, adapter="a", stream=True)
    next(outputs)
    llm.unload_adapter("a")
    *_, last = outputs
    assert last.text == whole.infill(text, params).text
    assert last.text != llm.infill(text, params).text
    with pytest.raises(AdapterNotFoundError):
        llm.infill(text, params, adapter="a")


# --- what the official code made of prefixes

PREFIXED = (
    "chatglm-6b-ptuning", "chatglm-6b-ptuning-proj", "chatglm2-6b-ptuning",
    "chatglm2-6b-ptuning-proj", "chatglm3-6b-ptuning",
)  # fmt: skip


def without_prefix(folder: Path, target: Path) -> Path:
    """The base of a golden folder."""
    from glimmer.checkpoints import FolderCheckpoint

    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("pre_seq_len", "prefix_projection")}
    with FolderCheckpoint(folder) as checkpoint:
        tensors = {
            name: hf_folder.Stored(t.dtype, t.shape, checkpoint.read(name).tobytes())
            for name, t in checkpoint.tensors.items()
            if "prefix_encoder" not in name
        }
    return hf_folder.write_folder(target, tensors, config=config)


@pytest.mark.parametrize("name", PREFIXED)
def test_a_prefix_per_request_is_that_of_the_official_code(tmp_path: Path, name: str) -> None:
    folder = golden.folder(name)
    base = load(without_prefix(folder, tmp_path / "base"), weights="float32", num_threads=1)
    assert base.architecture.prefix_length == 0
    llm = LLM(base, max_num_seqs=2, max_model_len=128, adapters={"p": folder})
    params = SamplingParams(temperature=0, max_new_tokens=24, ignore_eos=True, logprobs=3)
    ((_, prompt),) = sequences(name)
    expected = results(name)["greedy_ids"][0, -24:].tolist()
    whole = LLM(load(folder, weights="float32", num_threads=1), max_model_len=128)
    alone = whole.generate([prompt], params)
    prepared = [
        p
        for adapter in (None, "p")
        for p in llm._session.prepare_prompts([prompt], params, False, 0, adapter)
    ]
    plain, prefixed = llm._finish(prepared)
    assert list(prefixed.token_ids) == expected
    assert answers([prefixed]) == answers(alone)
    assert answers([plain]) == answers(LLM(base, max_model_len=128).generate([prompt], params))
    assert plain.token_ids != prefixed.token_ids
