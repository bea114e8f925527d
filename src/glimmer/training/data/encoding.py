"""Examples as token ids and labels, as the model's own chat template lays them out.

What a model is asked to write is the family's to say (``Chat.answers``); what stands before it is
the prompt of its chat template. Here the two are only put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from glimmer.chat import Message
from glimmer.errors import InvalidParameterError, TrainingDataError
from glimmer.families import Chat
from glimmer.tokenizers import Tokenizer
from glimmer.training.data.example import Example
from glimmer.training.data.report import Report

IGNORED = -100
"""The label of a token that no loss counts."""
TooLong = Literal["cut", "skip"]
T = TypeVar("T")


@dataclass(slots=True)
class Encoded:
    token_ids: list[int]
    labels: list[int]
    """For each token, its own id if it is trained, else ``IGNORED``. Not shifted: a network that
    predicts the next token compares its output at i with label i + 1."""

    @property
    def num_trained(self) -> int:
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A preference; each answer goes behind the prompt."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    def sequences(self) -> tuple[Encoded, Encoded]:
        """The better and the worse answer, each with its prompt."""
        before = [IGNORED] * len(self.prompt_ids)
        chosen, rejected = (
            Encoded(self.prompt_ids + ids, before + ids)
            for ids in (self.chosen_ids, self.rejected_ids)
        )
        return chosen, rejected


@dataclass(slots=True)
class EncodingReport(Report):
    """``problems`` are those of encoding; ``num_examples`` counts what was given."""

    num_encoded: int = 0
    """Sequences that came out: an example may be several, and a preference is two."""
    num_cut: int = 0
    num_skipped: int = 0
    """Sequences that were too long and were left out."""
    num_tokens: int = 0
    num_trained_tokens: int = 0


def encode(
    example: Example,
    chat: Chat,
    tokenizer: Tokenizer,
    max_length: int,
    *,
    too_long: TooLong = "cut",
    report: EncodingReport | None = None,
) -> list[Encoded]:
    """The sequences of one example, none of more than ``max_length`` tokens.

    A sequence holds all trained answers that the model would have given with those ids before it.
    An answer whose prompt shows what came earlier in another way begins a sequence of its own: a
    family of rounds numbers them anew, a thinking one hides earlier thoughts. Of a preference it is
    the better answer.

    A longer sequence loses its end ("cut") or is left out ("skip"); ``report`` counts them.

    Raises:
        TrainingDataError: the family cannot express the conversation, or no answer is trained in
            what remains; the message names the line.
        InvalidParameterError: ``max_length`` or ``too_long`` is out of its range.
    """
    _check(max_length, too_long)
    report = EncodingReport() if report is None else report
    kept, num_cut = [], 0
    for sequence in _sequences(example, chat, tokenizer):
        if len(sequence.token_ids) > max_length:
            if too_long == "skip":
                report.num_skipped += 1
                continue
            del sequence.token_ids[max_length:], sequence.labels[max_length:]
            if not sequence.num_trained:
                raise _masked(example, max_length)
            num_cut += 1
        kept.append(sequence)
    report.num_cut += num_cut
    report.num_encoded += len(kept)
    report.num_tokens += sum(len(sequence.token_ids) for sequence in kept)
    report.num_trained_tokens += sum(sequence.num_trained for sequence in kept)
    return kept


def encode_pair(
    example: Example,
    chat: Chat,
    tokenizer: Tokenizer,
    max_length: int,
    *,
    too_long: TooLong = "cut",
    report: EncodingReport | None = None,
) -> EncodedPair | None:
    """A preference for DPO; None if it was too long and left out. Raises as ``encode``, and for an
    example without a rejected answer."""
    _check(max_length, too_long)
    report = EncodingReport() if report is None else report
    if example.rejected is None:
        raise TrainingDataError(
            f"{_where(example)}: a preference is needed, with a chosen and a rejected answer, but "
            "there is no rejected one."
        )
    with_line = _Located(example)
    prompt = with_line.prompt(chat, len(example.messages) - 1)
    answers = [
        with_line.answer(chat, tokenizer, message)
        for message in (example.messages[-1], example.rejected)
    ]
    cut = sum(len(prompt) + len(answer) > max_length for answer in answers)
    if cut:
        if too_long == "skip":
            report.num_skipped += len(answers)
            return None
        answers = [answer[: max(0, max_length - len(prompt))] for answer in answers]
        if not all(answers):
            raise _masked(example, max_length)
    if answers[0] == answers[1]:
        raise TrainingDataError(
            f"{_where(example)}: the chosen and the rejected answer are the same"
            + (f" in the first {max_length} tokens." if cut else ".")
        )
    report.num_cut += cut
    report.num_encoded += len(answers)
    report.num_tokens += sum(len(prompt) + len(answer) for answer in answers)
    report.num_trained_tokens += sum(map(len, answers))
    return EncodedPair(prompt, *answers)


def encode_all(
    examples: Iterable[Example],
    chat: Chat,
    tokenizer: Tokenizer,
    max_length: int,
    *,
    too_long: TooLong = "cut",
    report: EncodingReport,
) -> Iterator[Encoded]:
    """The sequences of many examples; what cannot be encoded goes into ``report`` by its number."""

    def encoded(example: Example) -> list[Encoded]:
        return encode(example, chat, tokenizer, max_length, too_long=too_long, report=report)

    return _each(encoded, examples, report)


def encode_pairs(
    examples: Iterable[Example],
    chat: Chat,
    tokenizer: Tokenizer,
    max_length: int,
    *,
    too_long: TooLong = "cut",
    report: EncodingReport,
) -> Iterator[EncodedPair]:
    """The same for preferences."""

    def encoded(example: Example) -> list[EncodedPair]:
        pair = encode_pair(example, chat, tokenizer, max_length, too_long=too_long, report=report)
        return [] if pair is None else [pair]

    return _each(encoded, examples, report)


def _each(
    encoded: Callable[[Example], list[T]], examples: Iterable[Example], report: EncodingReport
) -> Iterator[T]:
    for example in examples:
        report.num_examples += 1
        found: list[T] = []
        with noting_problems(example, report):
            found = encoded(example)
        yield from found


@contextmanager
def noting_problems(example: Example, report: Report) -> Iterator[None]:
    """What cannot be encoded inside the block goes into ``report`` by the example's number."""
    try:
        yield
    except TrainingDataError as error:
        what = str(error).removeprefix(f"{_where(example)}: ")
        report.add(example.line, example.record, what)


class _Located:
    """A family's errors with the line that they are about."""

    def __init__(self, example: Example) -> None:
        self._example = example

    def prompt(self, chat: Chat, length: int) -> list[int]:
        """Of the first ``length`` messages."""
        try:
            return chat.template.encode(self._example.messages[:length], self._example.tools)
        except InvalidParameterError as error:
            raise TrainingDataError(f"{_where(self._example)}: {error}") from error

    def answer(self, chat: Chat, tokenizer: Tokenizer, message: Message) -> list[int]:
        try:
            ids = chat.answers.encode(message, tokenizer)
        except InvalidParameterError as error:
            raise TrainingDataError(f"{_where(self._example)}: {error}") from error
        return [*ids, chat.answers.end(message, tokenizer)]


def _sequences(example: Example, chat: Chat, tokenizer: Tokenizer) -> list[Encoded]:
    if not any(example.trained):
        raise TrainingDataError(f"{_where(example)}: no answer of it is trained.")
    located = _Located(example)
    inner_ends = chat.answers.inner_ends(tokenizer)
    sequences: list[Encoded] = []
    for place, message in enumerate(example.messages):
        if not example.trained[place]:
            continue
        prompt = located.prompt(chat, place)
        labels = None
        if sequences and (labels := _continued(sequences[-1], prompt, inner_ends)) is not None:
            sequences.pop()
        answer = located.answer(chat, tokenizer, message)
        before = [IGNORED] * len(prompt) if labels is None else labels
        sequences.append(Encoded(prompt + answer, before + answer))
    return sequences


def _continued(sequence: Encoded, prompt: list[int], inner_ends: Set[int]) -> list[int] | None:
    """The labels of a prompt that goes on where a sequence ends; None if it does not.

    The last token of the sequence ends its last answer. In the prompt the same token may stand
    there, or another that ends an answer within a conversation.
    """
    ids, labels = sequence.token_ids, sequence.labels
    length = len(ids)
    if prompt[: length - 1] != ids[:-1] or len(prompt) < length:
        return None
    end = prompt[length - 1]
    if end != ids[-1] and end not in inner_ends:
        return None
    return [*labels[:-1], end, *[IGNORED] * (len(prompt) - length)]


def _check(max_length: int, too_long: str) -> None:
    if max_length < 1:
        raise InvalidParameterError(f"max_length must be at least 1, but it is {max_length}.")
    if too_long not in get_args(TooLong):
        raise InvalidParameterError(
            f"too_long must be one of {', '.join(get_args(TooLong))}, but it is {too_long!r}."
        )


def _masked(example: Example, max_length: int) -> TrainingDataError:
    return TrainingDataError(
        f"{_where(example)}: its prompt alone takes {max_length} tokens or more, so that nothing "
        "trained is left of it. Raise the maximum length, shorten the prompt, or skip what is too "
        "long."
    )


def _where(example: Example) -> str:
    return f"line {example.line} (record {example.record})"
