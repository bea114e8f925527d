"""Ids are the chat template's, and labels lie on what the assistant says, for every family."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimmer.chat import Message, ToolCall, to_tools
from glimmer.chat.parser import ParsedAnswer
from glimmer.errors import InvalidParameterError, TrainingDataError
from glimmer.families import Chat
from glimmer.tokenizers import Tokenizer
from glimmer.training.data import (
    IGNORED,
    Encoded,
    EncodingReport,
    Example,
    encode,
    encode_all,
    encode_pair,
    encode_pairs,
)
from glimmer.training.data.encoding import _continued
from tests.support.chats import NAMES, real_chat, tiny_chat

ROUNDS = ("chatglm", "chatglm2")
# One sequence holds a whole conversation, as in the official multi-turn fine-tuning.
WHOLE = ("chatglm3", "glm4", "glm4_0414", "glm45", "smollm")
TOOLS = to_tools(
    [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}]
)
# Words that every tokenizer gives back as they were.
WORDS = st.text(st.sampled_from("abcxyz你好猫天人"), min_size=1, max_size=5)
TEXTS = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
MAX = 100_000


@st.composite
def examples(draw: st.DrawFn, calls: bool, thoughts: bool = False) -> Example:
    messages: list[Message] = []
    trained: list[bool] = []

    def say(message: Message, flag: bool = False) -> None:
        messages.append(message)
        trained.append(flag)

    if draw(st.booleans()):
        say(Message("system", draw(TEXTS)))
    for _ in range(draw(st.integers(1, 3))):
        say(Message("user", draw(TEXTS)))
        if calls and draw(st.booleans()):
            call = ToolCall("f", json.dumps({"x": draw(TEXTS)}, ensure_ascii=False))
            text = draw(st.just("") | TEXTS)
            say(Message("assistant", text, tool_calls=(call,)), draw(st.booleans()))
            say(Message("tool", draw(TEXTS), name="f"))
        thought = draw(st.none() | TEXTS) if thoughts else None
        say(Message("assistant", draw(TEXTS), reasoning=thought), draw(st.booleans()))
    trained[-1] = True
    return Example(tuple(messages), TOOLS if calls else (), tuple(trained), line=7, record=3)


def examples_of(name: str) -> st.SearchStrategy[Example]:
    thinks = name == "glm45" or "Z1" in name
    return examples(calls=name != "smollm", thoughts=thinks)


def answers_of(sequence: Encoded) -> list[tuple[int, list[int]]]:
    """Where each trained answer begins, and its ids."""
    found, at = [], 0
    for trained, run in itertools.groupby(sequence.labels, lambda label: label != IGNORED):
        ids = list(run)
        if trained:
            found.append((at, ids))
        at += len(ids)
    return found


def spoken(name: str, message: Message) -> str:
    """The text of an answer without calls, as the family's models write it."""
    thought, text = message.reasoning, message.content
    return {
        "chatglm": text,
        "chatglm2": text,
        "chatglm3": f"\n {text}",  # the content is tokenised apart, which begins with a blank
        "glm4": f"\n{text}",
        "glm4_0414": f"\n{text}",
        "glm4_0414 (Z1)": (f"\n{thought}\n" if thought else "") + f"</think>\n{text}",
        "glm45": f"\n<think>{thought or ''}</think>\n{text}",
        "smollm": text,
    }[name]


def parsed(
    chat: Chat, tokenizer: Tokenizer, ids: Sequence[int], tools: Sequence[object]
) -> ParsedAnswer:
    """What a user would get if the model wrote these ids."""
    names = {token_id: token for token, token_id in tokenizer.special_tokens.items()}
    parser, answer = chat.parser(TOOLS if tools else ()), ParsedAnswer()
    text = tokenizer.detokenizer()
    for token_id in ids:
        if token_id in names:
            answer.add(parser.push(text.finish()))
            answer.add(parser.control(names[token_id]))
            text = tokenizer.detokenizer()
        else:
            answer.add(parser.push(text.push(token_id)))
    answer.add(parser.push(text.finish()))
    answer.add(parser.finish())
    return answer


def check(name: str, chat: Chat, tokenizer: Tokenizer, example: Example) -> None:
    sequences = encode(example, chat, tokenizer, MAX)
    places = [i for i, flag in enumerate(example.trained) if flag]
    found = [(sequence, *answer) for sequence in sequences for answer in answers_of(sequence)]
    assert len(found) == len(places)
    for (sequence, start, ids), place in zip(found, places, strict=True):
        message = example.messages[place]
        assert all(label in (IGNORED, i) for i, label in
                   zip(sequence.token_ids, sequence.labels, strict=True))  # fmt: skip
        # What stands before the answer is the prompt that a server would have made.
        prompt = chat.template.encode(example.messages[:place], example.tools)
        assert sequence.token_ids[:start] == prompt
        *answer, end = ids
        ends = {chat.answers.end(message, tokenizer), *chat.answers.inner_ends(tokenizer)}
        assert end in ends
        if not message.tool_calls:
            assert tokenizer.decode(answer) == spoken(name, message)
        got = parsed(chat, tokenizer, answer, example.tools)
        # Rounds cannot tell a text from a call that it stands before: both are one text.
        if name not in ROUNDS or not (message.content and message.tool_calls):
            assert got.text == message.content
            assert [(c.name, c.parsed()) for c in got.tool_calls] == [
                (c.name, c.parsed()) for c in message.tool_calls
            ]
        assert (got.reasoning or None) == message.reasoning
    if name in WHOLE and not any(m.reasoning for m in example.messages):
        (sequence,) = sequences
        assert sequence.token_ids[-1] == chat.answers.end(example.messages[-1], tokenizer)
        whole = chat.template.encode(example.messages, example.tools, add_generation_prompt=False)
        assert sequence.token_ids[: len(whole)] == whole[: len(sequence.token_ids)]
        assert abs(len(sequence.token_ids) - len(whole)) == 1


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20)
@given(st.data())
def test_ids_and_labels(name: str, data: st.DataObject) -> None:
    check(name, *tiny_chat(name), data.draw(examples_of(name)))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5)
@given(st.data())
def test_ids_and_labels_with_the_published_tokenizers(name: str, data: st.DataObject) -> None:
    check(name, *real_chat(name), data.draw(examples_of(name)))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(st.text(max_size=20), st.text(min_size=1, max_size=20))
def test_any_text_at_all(name: str, question: str, answer: str) -> None:
    """Whatever is said: the labels are one run at the end, and forge no token."""
    chat, tokenizer = tiny_chat(name)
    messages = (Message("user", question or "?"), Message("assistant", answer))
    (sequence,) = encode(Example(messages, trained=(False, True)), chat, tokenizer, MAX)
    ((start, ids),) = answers_of(sequence)
    assert start + len(ids) == len(sequence.token_ids)
    assert not set(ids[:-1]) & set(tokenizer.special_tokens.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_an_answer_says_forges_no_token(name: str) -> None:
    chat, tokenizer = tiny_chat(name)
    structure = dict(tokenizer.special_tokens)
    if name != "smollm":  # whose template gives no meaning to any other token
        structure.update(tokenizer.added_tokens)
    hostile = " ".join([*structure, "x"]).replace("</think>", "")  # that one ends a thought

    def count(text: str) -> int:
        messages = (Message("user", "q"), Message("assistant", text))
        (sequence,) = encode(Example(messages, trained=(False, True)), chat, tokenizer, MAX)
        return sum(i in structure.values() for i in sequence.token_ids)

    assert count(hostile) == count("x")


def conversation(*texts: str) -> Example:
    messages = tuple(
        Message("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)
    )
    return Example(messages, trained=tuple(m.role == "assistant" for m in messages))


def test_chatglm3_labels_are_the_official_ones() -> None:
    """Ids and labels that the official finetune demo prints in its README: what follows
    <|assistant|> (64796), beginning with the blank and the new line of its metadata."""
    chat, tokenizer = real_chat("chatglm3")
    (sequence,) = encode(conversation("hi", "I need to use"), chat, tokenizer, MAX)
    start = sequence.token_ids.index(64796)
    assert sequence.token_ids[start:] == [64796, 30910, 13, 307, 720, 289, 792, 2]
    assert sequence.labels[start:] == [IGNORED, 30910, 13, 307, 720, 289, 792, 2]
    assert set(sequence.labels[:start]) == {IGNORED}


@pytest.mark.parametrize(
    ("name", "inner", "last"),
    [
        ("chatglm", 130005, 130005),  # <eop>
        ("chatglm2", 2, 2),  # </s>
        ("chatglm3", 64795, 2),  # <|user|>, and </s> at the end
        ("glm4", 151336, 151336),  # <|user|>
        ("glm4_0414", 151336, 151336),
        ("glm4_0414 (Z1)", 151336, 151336),
        ("glm45", 151336, 151336),
    ],
)
def test_the_token_that_ends_an_answer_is_trained(name: str, inner: int, last: int) -> None:
    chat, tokenizer = real_chat(name)
    sequences = encode(conversation("a", "b", "c", "d"), chat, tokenizer, MAX)
    answers = [ids for sequence in sequences for _, ids in answers_of(sequence)]
    assert [ids[-1] for ids in answers] == [inner, last]
    assert len(sequences) == (1 if name in WHOLE else 2)


@pytest.mark.parametrize("name", ["chatglm3", "glm4", "glm4_0414", "glm45"])
def test_a_call_is_ended_by_the_observation(name: str) -> None:
    chat, tokenizer = real_chat(name)
    call = Message("assistant", tool_calls=(ToolCall("f", '{"x": "y"}'),))
    example = Example((Message("user", "q"), call), TOOLS, (False, True))
    (sequence,) = encode(example, chat, tokenizer, MAX)
    assert sequence.labels[-1] == tokenizer.special_tokens["<|observation|>"]


def test_chatglm_is_context_gmask_sop_answer_eop() -> None:
    chat, tokenizer = real_chat("chatglm")
    (sequence,) = encode(conversation("你好", "你好！"), chat, tokenizer, MAX)
    answer = tokenizer.encode("你好！")
    assert sequence.token_ids == [*tokenizer.encode("你好"), 130001, 130004, *answer, 130005]
    assert sequence.labels[-len(answer) - 1 :] == [*answer, 130005]
    assert set(sequence.labels[: -len(answer) - 1]) == {IGNORED}


def test_thoughts_that_a_later_prompt_hides_are_trained_where_they_were_thought() -> None:
    chat, tokenizer = tiny_chat("glm45")
    messages = (
        Message("user", "a"), Message("assistant", "b", reasoning="first"),
        Message("user", "c"), Message("assistant", "d", reasoning="second"),
    )  # fmt: skip
    example = Example(messages, trained=(False, True, False, True))
    one, two = (tokenizer.decode(s.token_ids) for s in encode(example, chat, tokenizer, MAX))
    assert "first" in one
    assert "first" not in two
    assert "<think></think>\nb" in two
    assert "second" in two


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ([1, 2, 3, 4], [IGNORED, 2, 3, IGNORED]),  # the answer and its end, then more
        ([1, 2, 8, 4], [IGNORED, 2, 8, IGNORED]),  # another end that a conversation may have
        ([1, 2, 9, 4], None),  # what ends no answer
        ([1, 7, 3, 4], None),  # another answer
        ([7, 2, 3, 4], None),  # another prompt
        ([1, 2], None),  # less than was said
    ],
)
def test_where_a_sequence_goes_on(prompt: list[int], labels: list[int] | None) -> None:
    assert _continued(Encoded([1, 2, 3], [IGNORED, 2, 3]), prompt, {8}) == labels


def test_too_long_examples_are_cut_or_skipped_and_counted() -> None:
    chat, tokenizer = tiny_chat("chatglm3")
    example = conversation("question", "answer " * 20)
    (whole,) = encode(example, chat, tokenizer, MAX)
    length = len(whole.token_ids)
    report = EncodingReport()
    (cut,) = encode(example, chat, tokenizer, length - 3, report=report)
    assert cut.token_ids == whole.token_ids[:-3]
    assert cut.labels == whole.labels[:-3]
    assert encode(example, chat, tokenizer, length - 3, too_long="skip", report=report) == []
    assert (report.num_cut, report.num_skipped, report.num_encoded) == (1, 1, 1)
    assert report.num_tokens == length - 3
    assert report.num_trained_tokens == cut.num_trained
    assert encode(example, chat, tokenizer, length) == [whole]
    with pytest.raises(TrainingDataError, match="its prompt alone takes 5 tokens or more"):
        encode(example, chat, tokenizer, 5)
    with pytest.raises(InvalidParameterError, match="max_length"):
        encode(example, chat, tokenizer, 0)
    with pytest.raises(InvalidParameterError, match="too_long must be one of cut, skip"):
        encode(example, chat, tokenizer, 5, too_long="keep")  # type: ignore[arg-type]


def test_what_a_family_cannot_express_is_told_by_line() -> None:
    good = conversation("q", "a")
    call = Message("assistant", tool_calls=(ToolCall("f", "{}"),))
    thought = Message("assistant", "a", reasoning="hm")
    named = Message("assistant", "x", metadata="f")
    nothing = Example(good.messages, trained=(False, False), line=5, record=4)
    for name, message, said in (
        ("smollm", call, "not trained to call tools"),
        ("chatglm", named, "metadata 'f', which this family does not write"),
        ("glm45", named, "metadata 'f', which GLM-4.5 does not write"),
        ("chatglm3", thought, "reasoning_content 'hm', which ChatGLM3 does not write"),
        ("glm4", thought, "reasoning_content"),
        ("glm4_0414", thought, "reasoning_content"),
    ):
        chat, tokenizer = tiny_chat(name)
        bad = Example((Message("user", "q"), message), trained=(False, True), line=9, record=8)
        with pytest.raises(TrainingDataError, match=r"line 9 \(record 8\)") as caught:
            encode(bad, chat, tokenizer, MAX)
        assert said in str(caught.value)
        report = EncodingReport()
        found = list(encode_all([good, bad, nothing, good], chat, tokenizer, MAX, report=report))
        assert len(found) == 2
        assert [(p.line, p.record) for p in report.problems] == [(9, 8), (5, 4)]
        assert said in report.problems[0].what
        assert report.problems[1].what == "no answer of it is trained."
        assert (report.num_examples, report.num_encoded, report.num_problems) == (4, 2, 2)


def preference(chosen: str, rejected: str) -> Example:
    messages = (Message("user", "q"), Message("assistant", chosen))
    return Example(
        messages, trained=(False, True), rejected=Message("assistant", rejected), line=2, record=2
    )


@pytest.mark.parametrize("name", NAMES)
def test_preferences(name: str) -> None:
    chat, tokenizer = tiny_chat(name)
    example = preference("good", "bad one")
    pair = encode_pair(example, chat, tokenizer, MAX)
    assert pair is not None
    answers = (pair.chosen_ids, pair.rejected_ids)
    ones = (example, example.with_rejected())
    for one, answer, found in zip(ones, answers, pair.sequences(), strict=True):
        assert encode(one, chat, tokenizer, MAX) == [found]
        assert found.token_ids == pair.prompt_ids + answer
        assert found.labels == [IGNORED] * len(pair.prompt_ids) + answer


def test_preferences_that_are_none() -> None:
    chat, tokenizer = tiny_chat("chatglm3")
    report = EncodingReport()
    given = [preference("same", "same"), conversation("q", "a"), preference("good", "x" * 50)]
    length = len(encode(given[0], chat, tokenizer, MAX)[0].token_ids)
    assert list(encode_pairs(given, chat, tokenizer, length, too_long="skip", report=report)) == []
    assert [p.what for p in report.problems] == [
        "the chosen and the rejected answer are the same.",
        "a preference is needed, with a chosen and a rejected answer, but there is no rejected "
        "one.",
    ]
    assert (report.num_skipped, report.num_encoded) == (2, 0)
    (pair,) = encode_pairs(given[2:], chat, tokenizer, length + 2, report=report)
    assert len(pair.prompt_ids) + len(pair.rejected_ids) == length + 2
    with pytest.raises(TrainingDataError, match="its prompt alone"):
        encode_pair(given[2], chat, tokenizer, len(pair.prompt_ids))
