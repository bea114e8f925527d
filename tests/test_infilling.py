"""Blanks filled by the engine: the network sees, number for number, what it sees in training."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import glimmer
from glimmer import LLM, AsyncLLM, SamplingParams, export
from glimmer.architecture import Architecture
from glimmer.checkpoints import open_checkpoint
from glimmer.errors import InvalidParameterError, PromptTooLongError
from glimmer.infilling import BlankText, Infilling, InfillMethod, InfillOutput, read_blanks
from glimmer.loader import LoadedModel
from glimmer.native import BLOCK_SIZE
from glimmer.outputs import RequestOutput, Timing, Usage
from glimmer.packed_source import open_source
from glimmer.training.blank_infilling import BlankTokens, Piece, Span, pack
from tests.support import families
from tests.support.golden import FOLDER
from tests.support.reference import Network
from tests.test_export import folder, network, with_real_blanks

DRAWN = SamplingParams(
    temperature=1.0, top_p=1.0, seed=7, max_new_tokens=5, logprobs=0, loop_guard=False
)
GREEDY = SamplingParams(temperature=0, max_new_tokens=5, loop_guard=False)
TEXT = "The quick [MASK] jumps over [sMASK] dog; the dog [MASK]. 你好[gMASK]"
METHODS: list[InfillMethod] = ["parts", "substitute"]


def lively_weights() -> tuple[Architecture, dict[str, families.Floats]]:
    """Of a small network whose layers say more than the token that they stand at."""
    architecture = with_real_blanks(network("chatglm", max_position=512))
    weights = families.tiny_weights(architecture)
    for name, weight in weights.items():
        if name.endswith(("attn_out.weight", "mlp_down.weight")):
            weights[name] = weight * 8
    return architecture, weights


def lively_folder(path: Path, **config: Any) -> Path:
    architecture, weights = lively_weights()
    families.write_folder(path, "chatglm", "official", architecture, weights, tokenizer=True)
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = lively_folder(tmp_path_factory.mktemp("infill") / "model")
    return glimmer.load(path, weights="float32", num_threads=1)


@pytest.fixture(scope="module")
def llm(model: LoadedModel) -> LLM:
    return LLM(model, max_num_seqs=2, max_model_len=512)


@pytest.fixture(scope="module")
def reference() -> Network:
    return Network(*lively_weights(), "float64", {})


def tokens_of(model: LoadedModel) -> BlankTokens:
    ids = model.tokenizer.special_tokens
    return BlankTokens(
        mask=ids["[MASK]"],
        smask=ids["[sMASK]"],
        gmask=ids["[gMASK]"],
        start=ids["<sop>"],
        end=ids["<eop>"],
    )


def check_fills(
    reference: Network,
    model: LoadedModel,
    context: list[int],
    fills: Sequence[tuple[int, RequestOutput]],
) -> None:
    """Each token has the probability that it has in a row of training, at its place there."""
    spans = tuple(Span(blank, np.array(fill.token_ids)) for blank, fill in fills)
    row = pack([Piece("mask", np.array(context), spans)], tokens_of(model))
    logits = reference.logits_at(row.token_ids, row.positions, row.attention_mask())
    logits = logits.astype(np.float64)
    logs = logits - logits.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    at = len(context)
    for _, fill in fills:
        assert fill.logprobs is not None
        for token_id, told in zip(fill.token_ids, fill.logprobs, strict=True):
            assert told.logprob == pytest.approx(logs[at, token_id], abs=2e-3)
            assert logs[at].std() > 0.5, "the places tell something"
            at += 1
        at += 1  # what the last token predicts was not asked for


def test_parts_are_laid_out_as_in_training(
    llm: LLM, model: LoadedModel, reference: Network
) -> None:
    output = llm.infill(TEXT, DRAWN, method="parts")
    text = read_blanks(TEXT, model)
    assert [len(fill.token_ids) for fill in output.fills] == [5, 5, 5, 5]
    assert len({token for fill in output.fills for token in fill.token_ids}) > 8
    both = list(zip(text.places, output.fills, strict=True))
    check_fills(reference, model, list(text.token_ids), both)
    with pytest.raises(AssertionError):  # at each other's places they are less likely
        check_fills(reference, model, list(text.token_ids), [(p, f) for (p, _), (_, f) in
                    zip(both, both[::-1], strict=True)])  # fmt: skip


def test_substitutes_are_laid_out_as_one_blank(
    llm: LLM, model: LoadedModel, reference: Network
) -> None:
    output = llm.infill(TEXT, DRAWN, method="substitute")
    text = read_blanks(TEXT, model)
    context = list(text.token_ids)
    for number, fill in enumerate(output.fills):
        place = text.places[number] + 4 * number  # each fill has five tokens for one
        assert context[place] in model.encode_blanks("[MASK][sMASK][gMASK]")
        check_fills(reference, model, context, [(place, fill)])
        if number == 3:  # alone, it is what the official code finds in such a prompt
            prompt = [*context, tokens_of(model).start]
            assert llm.generate(prompt, DRAWN)[0].token_ids == fill.token_ids
        context[place : place + 1] = fill.token_ids
    assert list(output.token_ids) == context


def test_the_two_ways_differ_in_the_second_blank_only_by_layout(llm: LLM) -> None:
    parts, substitute = (llm.infill(TEXT, DRAWN, method=method) for method in METHODS)
    assert parts.fills[0].token_ids == substitute.fills[0].token_ids
    assert [f.token_ids for f in parts.fills] != [f.token_ids for f in substitute.fills]


@pytest.mark.parametrize("method", METHODS)
def test_released_networks_read_that_a_text_ends(
    llm: LLM, model: LoadedModel, tmp_path: Path, method: InfillMethod
) -> None:
    """As GLM's generate_samples.py, GLM-130B's generate.py and ChatGLM-6B's first tokenizer have
    it: "</s>" behind a text that ends in no blank, once, in the context."""
    end = model.tokenizer.special_tokens["</s>"]
    start = tokens_of(model).start
    text = "The [MASK] sat on [sMASK]."
    context = [*model.encode_blanks(text), end]
    infilling = Infilling(llm._session, text, GREEDY, method=method)
    (request,) = infilling.prepare().requests
    assert list(request.prompt_token_ids) == [*context, start]
    assert request.layout is not None
    assert request.layout.context_length == len(context)
    first = infilling.take(filled(0, "cat", tuple(model.tokenizer.encode("cat"))))
    assert end not in first.token_ids
    (request,) = infilling.prepare().requests
    assert request.prompt_token_ids.count(end) == 1
    assert request.layout is not None
    assert request.prompt_token_ids[request.layout.context_length - 1] == end
    # An open text has no end; nor has one for a network that learnt without.
    (request,) = Infilling(llm._session, text + "[gMASK]", GREEDY).prepare().requests
    assert end not in request.prompt_token_ids
    ours = glimmer.load(lively_folder(tmp_path / "ours", several_blanks=True), num_threads=1)
    session = LLM(ours, max_model_len=512)._session
    (request,) = Infilling(session, text, GREEDY, method=method).prepare().requests
    assert list(request.prompt_token_ids) == [*context[:-1], start]


def test_auto_is_what_the_network_was_trained_for(
    llm: LLM, model: LoadedModel, tmp_path: Path
) -> None:
    """The releases do not say: one blank at a time, which their own code can express."""
    found = llm.infill(TEXT, DRAWN)
    assert found.token_ids == llm.infill(TEXT, DRAWN, method="substitute").token_ids
    path = lively_folder(tmp_path / "several", several_blanks=True)
    several = glimmer.load(path, weights="float32", num_threads=1)
    assert several.architecture.blanks is not None
    assert several.architecture.blanks.several
    found = LLM(several, max_model_len=512).infill(TEXT, DRAWN)
    assert found.token_ids == llm.infill(TEXT, DRAWN, method="parts").token_ids
    # Another layout of the file still tells it.
    for form in ("gguf", "hf"):
        export.convert(path, tmp_path / form, form)
        with open_checkpoint(tmp_path / form) as checkpoint:
            assert open_source(checkpoint).architecture == several.architecture


@pytest.mark.parametrize("method", METHODS)
def test_the_cache_changes_nothing(model: LoadedModel, method: InfillMethod) -> None:
    long = "问：你是谁？答：我是一个助手。" * 4 + TEXT
    plain = LLM(model, max_model_len=512, prefix_caching=False, speculation=False)
    cached = LLM(model, max_model_len=512)
    expected = plain.infill(long, DRAWN, method=method)
    for _ in range(2):
        found = cached.infill(long, DRAWN, method=method)
        assert found.token_ids == expected.token_ids
        assert found.text == expected.text
    assert expected.usage.cached_tokens == 0
    prompts = [fill.usage.prompt_tokens for fill in found.fills]
    assert found.usage == Usage(
        sum(prompts), 20, sum(fill.usage.cached_tokens for fill in found.fills)
    )
    assert found.usage.cached_tokens > sum(prompts) - BLOCK_SIZE * len(prompts) - 1


def test_parts_read_the_text_once(model: LoadedModel) -> None:
    found = LLM(model, max_model_len=512).infill("问：你是谁？" * 8 + TEXT, DRAWN, method="parts")
    assert [fill.usage.cached_tokens > 0 for fill in found.fills] == [False, True, True, True]


def test_a_text_is_filled(llm: LLM, model: LoadedModel) -> None:
    output = llm.infill(TEXT, DRAWN)
    assert isinstance(output, InfillOutput)
    assert output.blanks == ("[MASK]", "[sMASK]", "[MASK]", "[gMASK]")
    assert output.finish_reason == "length"
    assert output.delta == output.text
    assert [fill.index for fill in output.fills] == [0, 1, 2, 3]
    rest = output.text
    for part, fill in zip(("The quick", " jumps over", " dog; the dog", ". 你好"), output.fills,
                          strict=True):  # fmt: skip
        assert rest.startswith(part)
        rest = rest[len(part) :].removeprefix(" ")
        assert rest.startswith(fill.text)
        rest = rest[len(fill.text) :]
    assert rest == ""
    # What ends a fill is no part of the text.
    end = model.tokenizer.special_tokens["<eop>"]
    nothing = llm.infill(TEXT, replace(GREEDY, logit_bias={end: 100}))
    assert nothing.text == "The quick jumps over dog; the dog. 你好"
    assert nothing.finish_reason == "stop"
    assert [fill.token_ids for fill in nothing.fills] == [(end,)] * 4
    assert end not in nothing.token_ids


def test_a_stop_string_ends_a_fill(llm: LLM) -> None:
    params = replace(DRAWN, max_new_tokens=12)
    whole = llm.infill(TEXT, params, method="parts")
    stop = whole.fills[0].text[2:4]
    assert len(stop) == 2
    found = llm.infill(TEXT, replace(params, stop=(stop,)), method="parts")
    assert found.fills[0].text == whole.fills[0].text.partition(stop)[0]
    assert found.fills[0].finish_reason == "stop"


def filled(
    index: int, text: str, token_ids: tuple[int, ...], stop_text: str | None = None
) -> RequestOutput:
    return RequestOutput(
        index=index, token_ids=token_ids, text=text, delta="", logprobs=None, finish_reason="stop",
        usage=Usage(0, 0), timing=Timing(0, 0, 0, None), stop_text=stop_text,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("text", "written", "stop", "expected"),
    [
        ("今天[MASK]好[gMASK]", "人工智能。回答", "。", "今天人工智能好"),
        ("今天[MASK]好[gMASK]", "人工智能", "人", "今天好"),
        ("今天[MASK]好[gMASK]", "可以", "以", "今天可好"),  # amid a token, as those with "og"
        ("the [MASK] cat[gMASK]", " lazy quick", " quick", "the lazy cat"),
        ("the [MASK] cat[gMASK]", " lazy quick", "lazy", "the cat"),
        ("the [MASK] cat[gMASK]", " dog", "og", "the d cat"),
        ("the [MASK] cat[gMASK]", " lazy dog", "og", "the lazy d cat"),
        ("the[MASK] cat[gMASK]", "m dog", "og", "them d cat"),
    ],
)
def test_what_a_stop_string_leaves_is_what_the_next_blank_reads(
    llm: LLM, method: InfillMethod, text: str, written: str, stop: str, expected: str
) -> None:
    """Its tokens are those of the text that is shown, without a space that is not there."""
    tokenizer = llm.model.tokenizer
    ids = llm.model.encode_blanks("[MASK]" + written)[1:]
    infilling = Infilling(llm._session, text, GREEDY, method=method)
    infilling.prepare()
    shown = written.partition(stop)[0].removeprefix(" ")
    output = infilling.take(filled(0, shown, tuple(ids), stop))
    context = llm.model.encode_blanks(f"{expected}[gMASK]")
    assert list(output.token_ids) == context
    assert expected.startswith(output.text)
    # The next blank, and what is given of its answer.
    prompt = list(infilling.prepare().requests[0].prompt_token_ids)
    start = tokens_of(llm.model).start
    if method == "substitute":
        assert prompt == [*context, start]
    else:
        before = len(llm.model.encode_blanks(text[: text.index("[MASK]")]))
        fill = context[before : len(context) - len(infilling.text.token_ids) + before + 1]
        assert prompt == [*infilling.text.token_ids, start, *fill, start]
    done = infilling.take(filled(1, "", (tokens_of(llm.model).end,)))
    assert done.text == expected
    assert tokenizer.decode(done.token_ids) == expected


@pytest.mark.parametrize(
    ("text", "fills", "expected"),
    [
        ("the [MASK] sat", [" cat"], "the cat sat"),
        ("the [MASK] sat", ["m"], "them sat"),
        ("the[MASK] sat", [" cat"], "the cat sat"),
        ("[MASK] sat", [" It"], "It sat"),
        ("今天[MASK]好", ["天气"], "今天天气好"),
        ("two  [MASK].", ["x"], "two  x."),
        ("a\n[MASK]", ["b"], "a\nb"),
        ("[MASK][MASK] c", [" a", " b"], "a b c"),
        ("a [MASK] c [MASK] e", [" b"], "a b"),
    ],
)
def test_spaces_around_a_blank(
    model: LoadedModel, text: str, fills: list[str], expected: str
) -> None:
    """A space before a blank belongs to the token that fills it."""
    read = read_blanks(text, model)
    ids = {fill: model.tokenizer.encode(fill.strip()) for fill in fills}
    outputs = []
    for index, fill in enumerate(fills):
        first = ids[fill][0]
        begins_with_space = model.tokenizer.token_bytes(first).startswith(b" ")
        if begins_with_space and not fill.startswith(" "):
            # Any token that is written without a space before it.
            first = next(
                i for i in range(model.tokenizer.vocab_size)
                if model.tokenizer.token_bytes(i)[:1].isalpha()
            )  # fmt: skip
        outputs.append(filled(index, fill.strip(), (first, *ids[fill][1:])))
    assert read.completed(outputs, model.tokenizer) == expected


def real_tokenizer() -> Any:
    """ChatGLM-6B's own; skips where it is not there."""
    from glimmer.families.chatglm.tokenizer import ChatGLMTokenizer
    from glimmer.tokenizers import SentencePieceTokenizer, load_model

    file = FOLDER.parent / "tokenizers" / "chatglm-6b" / "ice_text.model"
    if not file.exists():
        pytest.skip(f"no tokenizer at {file}")
    data = file.read_bytes()
    return ChatGLMTokenizer(SentencePieceTokenizer(load_model(data, "it"), model_bytes=data))


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog; then it sleeps, doesn't it?",
        "人工智能助手可以回答问题，写代码，也可以聊天。",
        "def f(x):\n    return x + 1  # a comment,\tand 123 numbers\n",
        "ＡＢＣ full width，and (brackets) [here] 2023年11月24日",
    ],
)
def test_what_follows_a_blank_is_read_as_in_the_whole_text(text: str) -> None:
    """Training takes tokens out of a whole text; wherever they were, inference sees the same."""
    tokenizer = real_tokenizer()
    whole = tokenizer.encode(text)
    mask = tokenizer.special_tokens["[MASK]"]
    written = [tokenizer.token_bytes(i).decode() for i in whole]
    before = ""
    for start in range(len(whole)):
        after = "".join(written[start + 1 :])
        ids = tokenizer.encode_blanks(before.removeprefix(" ") + "[MASK]" + after)
        if not before.endswith(" "):  # a space before a blank is the blank's
            assert ids == [*whole[:start], mask, *whole[start + 1 :]], (before, after)
        before += written[start]


def test_blanks_in_a_chat_are_text(model: LoadedModel) -> None:
    for text in ("[MASK]", "[sMASK]", "[gMASK]"):
        ids = model.chat_template.encode([{"role": "user", "content": f"a {text} b"}])
        tokens = tokens_of(model)
        assert ids[-2:] == [tokens.gmask, tokens.start]
        assert not {tokens.mask, tokens.smask, tokens.gmask} & set(ids[:-2])
    # And in a text with blanks, nothing else is a control token.
    ids = model.encode_blanks("<sop> [MASK] <eop> </s>")
    assert set(ids) & set(model.tokenizer.special_tokens.values()) == {tokens.mask}


@pytest.mark.parametrize("method", METHODS)
def test_streaming_adds_up(llm: LLM, method: InfillMethod) -> None:
    whole = llm.infill(TEXT, DRAWN, method=method)
    outputs = list(llm.infill(TEXT, DRAWN, method=method, stream=True))
    assert "".join(output.delta for output in outputs) == whole.text == outputs[-1].text
    assert outputs[-1].token_ids == whole.token_ids
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert [len(output.fills) for output in outputs] == sorted(len(o.fills) for o in outputs)


def test_closing_a_stream_frees_its_place(model: LoadedModel) -> None:
    llm = LLM(model, max_num_seqs=1, max_model_len=128)
    stream = llm.infill(TEXT, GREEDY, stream=True)
    next(stream)
    assert llm.stats.num_running == 1
    stream.close()
    assert llm.stats.num_running == llm.stats.num_waiting == 0


def test_async(llm: LLM, model: LoadedModel) -> None:
    texts = [TEXT, "你好[gMASK]", "a [MASK] b [MASK]"]
    expected = [llm.infill(text, DRAWN) for text in texts]

    async def ask() -> None:
        async with AsyncLLM(model, max_num_seqs=4, max_model_len=512) as many:
            found = await asyncio.gather(*(many.infill(text, DRAWN) for text in texts))
            assert [o.text for o in found] == [o.text for o in expected]
            assert [o.delta for o in found] == [o.text for o in expected]
            outputs = [o async for o in await many.infill(TEXT, DRAWN, stream=True)]
            assert "".join(o.delta for o in outputs) == expected[0].text
            stream = await many.infill(TEXT, replace(GREEDY, max_new_tokens=100), stream=True)
            await anext(stream)
            await stream.aclose()
            await many.infill("[MASK]", GREEDY)  # commands are obeyed in order
            assert many.stats.num_running == 0
            # Left before it was begun.
            stream = await many.infill(TEXT, replace(GREEDY, max_new_tokens=100), stream=True)
            await stream.aclose()
            await many.infill("[MASK]", GREEDY)
            assert many.stats.num_running == 0
            with pytest.raises(InvalidParameterError, match="no blank to fill"):
                await many.infill("nothing", GREEDY)

    asyncio.run(ask())


def test_what_is_refused(llm: LLM, model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match=r"no blank to fill. Write \[MASK\]"):
        llm.infill("[mask]")
    with pytest.raises(InvalidParameterError, match="completed once"):
        llm.infill(TEXT, SamplingParams(n=2))
    with pytest.raises(InvalidParameterError, match="method must be one of auto, parts"):
        llm.infill(TEXT, method="both")  # type: ignore[call-overload]
    with pytest.raises(PromptTooLongError, match="context holds 32"):
        LLM(model, max_model_len=32).infill(TEXT * 2)
    other = LLM(glimmer.load(folder(tmp_path, "glm4", "official"), family="glm4"))
    with pytest.raises(InvalidParameterError, match="glm4 family, whose networks see a text from"):
        other.infill(TEXT)


def test_a_text_of_blanks_alone(model: LoadedModel, llm: LLM) -> None:
    assert read_blanks("[gMASK]", model) == BlankText(
        ("", ""), ("[gMASK]",), (tokens_of(model).gmask,), (0,)
    )
    output = llm.infill("[gMASK]", GREEDY)
    assert output.text == output.fills[0].text.removeprefix(" ")
