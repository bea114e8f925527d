"""How far a model is from another, usually the same in float32: a parity report.

Both read the same text; what is compared is what each layer hands on, the logits, the token that
each would take, and how well each foretells the text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glimmer.errors import InvalidParameterError
from glimmer.loader import LoadedModel, Weights, load
from glimmer.tokenizers import Tokenizer

Floats = npt.NDArray[np.float32]
MAX_WINDOW = 512
"""Tokens that are read at once."""
SAMPLE = """\
人工智能的目标，是让机器完成需要人的智慧才能完成的事情。几十年来，研究者尝试过许多办法：有人写下规则，\
有人从数据中学习。今天的语言模型读过大量的文字，能够回答问题、翻译文章、编写程序，也会犯错误。

A language model reads a text and tells which word is likely to come next. It does so one token
at a time; what it has read is kept as keys and values, so that nothing is computed twice. Numbers
such as 3.14, 42 and 2,000 are cut into pieces, and so are words like "pneumonoultramicroscopic".

def fibonacci(n: int) -> list[int]:
    numbers = [0, 1]
    while len(numbers) < n:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:n]

春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。
"""


@dataclass(frozen=True, slots=True)
class TokenizerCheck:
    num_texts: int
    failed: tuple[str, ...]
    """Texts that encoding and decoding do not give back."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of a model with its reference. Errors are root mean squares over the reference's own."""

    model: str
    reference: str
    num_tokens: int
    on_random_ids: bool
    """Whether the tokens were drawn for want of a tokenizer: perplexity then says little."""
    tokenizer: TokenizerCheck | None
    layer_errors: tuple[float, ...]
    """Of the embedding, and of what leaves each layer."""
    logit_error_mean: float
    """Mean absolute difference of logits."""
    logit_error_max: float
    greedy_agreement: float
    """Share of places at which both would take the same token."""
    kl_divergence: float
    """Mean over places, of the reference's distribution from the model's; in nats."""
    perplexity: float
    reference_perplexity: float


def compare(
    model: str | os.PathLike[str],
    *,
    weights: Weights = "auto",
    against: str | os.PathLike[str] | None = None,
    reference_weights: Weights = "float32",
    text: str | None = None,
    max_tokens: int = 2048,
    family: str | None = None,
    num_threads: int | None = None,
) -> Comparison:
    """Compare ``model`` with ``against``, by default itself, under ``reference_weights``.

    Raises:
        InvalidParameterError: the two have different vocabularies or layers, or the text is empty.
        OutOfMemoryError: both together do not fit; a narrower ``reference_weights`` may.
    """
    candidate = load(model, weights=weights, family=family, num_threads=num_threads)
    reference = load(
        model if against is None else against,
        weights=reference_weights,
        family=family if against is None else None,
        num_threads=num_threads,
    )
    a, b = candidate.architecture, reference.architecture
    if (a.vocab_size, a.num_layers, a.hidden_size) != (b.vocab_size, b.num_layers, b.hidden_size):
        raise InvalidParameterError(
            f"{candidate.path} has {a.vocab_size} tokens and {a.num_layers} layers of "
            f"{a.hidden_size}, but {reference.path} has {b.vocab_size} and {b.num_layers} of "
            f"{b.hidden_size}: they are not the same model."
        )
    tokenizer = candidate.tokenizer if candidate.has_tokenizer else None
    ids = _token_ids(tokenizer, text, a.vocab_size, max_tokens)
    return _measure(
        candidate,
        reference,
        ids,
        names=(f"{candidate.path} ({weights})", f"{reference.path} ({reference_weights})"),
        tokenizer=tokenizer,
        text=text,
    )


def check_tokenizer(tokenizer: Tokenizer, texts: Sequence[str]) -> TokenizerCheck:
    failed = tuple(t for t in texts if tokenizer.decode(tokenizer.encode(t)) != t)
    return TokenizerCheck(len(texts), failed)


def _token_ids(
    tokenizer: Tokenizer | None, text: str | None, vocab_size: int, max_tokens: int
) -> list[int]:
    if tokenizer is None:
        if text is not None:
            raise InvalidParameterError(
                "The model has no tokenizer, so it cannot read a text; leave the text out to "
                "compare on drawn tokens."
            )
        drawn = np.random.default_rng(0).integers(0, vocab_size, min(max_tokens, 256))
        return [int(token) for token in drawn]
    ids = tokenizer.encode(SAMPLE if text is None else text)[:max_tokens]
    if len(ids) < 2:
        raise InvalidParameterError("The text must have at least two tokens.")
    return ids


def _measure(
    candidate: LoadedModel,
    reference: LoadedModel,
    ids: list[int],
    *,
    names: tuple[str, str],
    tokenizer: Tokenizer | None,
    text: str | None,
) -> Comparison:
    a = candidate.architecture
    # A network that fills blanks reads the text as what fills one.
    prefix = [a.blanks.blank_ids[0], a.blanks.start_id] if a.blanks is not None else []
    window = min(MAX_WINDOW, a.max_position - len(prefix))
    squares = np.zeros((2, a.num_layers + 1))
    differences: list[Floats] = []
    agreed, kl, surprise = [], [], ([], [])  # type: ignore[var-annotated]
    for start in range(0, len(ids), window):
        piece = ids[start : start + window]
        if len(piece) < 2:
            break
        (logits, hidden), (expected, exact) = (
            model.trace([*prefix, *piece]) for model in (candidate, reference)
        )
        squares[0] += np.square(hidden - exact, dtype=np.float64).sum(axis=(1, 2))
        squares[1] += np.square(exact, dtype=np.float64).sum(axis=(1, 2))
        logits, expected = logits[len(prefix) :], expected[len(prefix) :]
        differences.append(np.abs(logits - expected).reshape(-1))
        agreed.append(logits.argmax(axis=1) == expected.argmax(axis=1))
        found, true = _log_softmax(logits), _log_softmax(expected)
        kl.append((np.exp(true) * (true - found)).sum(axis=1))
        following = piece[1:]
        for values, into in ((found, surprise[0]), (true, surprise[1])):
            into.append(-values[np.arange(len(following)), following])
    errors = np.sqrt(squares[0] / np.maximum(squares[1], 1e-30))
    texts = [line for line in (SAMPLE if text is None else text).splitlines() if line]
    return Comparison(
        model=names[0],
        reference=names[1],
        num_tokens=len(ids),
        on_random_ids=tokenizer is None,
        tokenizer=None if tokenizer is None else check_tokenizer(tokenizer, texts),
        layer_errors=tuple(map(float, errors)),
        logit_error_mean=float(np.mean([d.mean() for d in differences])),
        logit_error_max=float(max(d.max() for d in differences)),
        greedy_agreement=float(np.concatenate(agreed).mean()),
        kl_divergence=float(np.concatenate(kl).mean()),
        perplexity=float(np.exp(np.concatenate(surprise[0]).mean())),
        reference_perplexity=float(np.exp(np.concatenate(surprise[1]).mean())),
    )


def _log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
