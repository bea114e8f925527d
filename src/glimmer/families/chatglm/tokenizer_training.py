"""A tokenizer of ChatGLM-6B's kind, trained on texts.

SentencePiece unigram with byte fallback, in the layout of the official ice_text.model: <unk>, <s>,
</s> and <pad> first, the control tokens by their own names, and user-defined pieces for new lines,
tabs and runs of spaces. The vocabulary is as small as is wanted, so ids are others: config.json
and the file itself tell them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import sentencepiece

from glimmer.errors import InvalidParameterError
from glimmer.families.chatglm.tokenizer import (
    END,
    GMASK,
    MASK,
    NEWLINE,
    SMASK,
    START,
    TAB,
    ChatGLMTokenizer,
    spaces,
)
from glimmer.tokenizers import SentencePieceTokenizer, load_model

CONTROLS = (MASK, GMASK, SMASK, START, END)
_USERS = (NEWLINE, TAB, *(spaces(n) for n in range(2, 81)))
_NUM_RESERVED = 4 + len(CONTROLS) + len(_USERS) + 256
MIN_VOCAB_SIZE = _NUM_RESERVED + 64
_MAX_LINE_BYTES = 1 << 16
"""Longer ones are cut: SentencePiece would leave them out."""
_NUM_THREADS = 16
"""The tokenizer depends on it, as sums of floats do on their order, so it is not the machine's."""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    character_coverage: float = 0.9995,
    max_lines: int = 2_000_000,
) -> ChatGLMTokenizer:
    """A tokenizer of at most ``vocab_size`` tokens. The same texts give the same one, whatever the
    machine.

    ``character_coverage`` is the share of the characters in the texts that get a piece of their
    own; others are written in bytes. Of more than ``max_lines`` lines, the first are read.

    Raises:
        InvalidParameterError: a vocabulary too small, or texts that cannot fill any.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise InvalidParameterError(
            f"vocab_size must be at least {MIN_VOCAB_SIZE}, for bytes, blanks and control tokens "
            f"take {_NUM_RESERVED}, but it is {vocab_size}."
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, max_lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=True,
            remove_extra_whitespaces=True,
            normalization_rule_name="nmt_nfkc",
            character_coverage=character_coverage,
            max_sentence_length=_MAX_LINE_BYTES,
            pad_id=3,
            control_symbols=list(CONTROLS),
            user_defined_symbols=list(_USERS),
            num_threads=_NUM_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InvalidParameterError(
            f"No tokenizer could be trained on these texts: {error}. Give more text."
        ) from error
    data = model.getvalue()
    pieces = SentencePieceTokenizer(load_model(data, "the new tokenizer"), model_bytes=data)
    return ChatGLMTokenizer(pieces)


def _lines(texts: Iterable[str], max_lines: int) -> Iterator[str]:
    """Lines as the tokenizer would hand them on; a new line is a piece by itself."""
    count = 0
    for text in texts:
        for line in ChatGLMTokenizer.prepare(text).split(NEWLINE):
            if line.strip():
                if count == max_lines:
                    return
                count += 1
                for start in range(0, len(line), _MAX_LINE_BYTES // 4):  # 4 bytes each at most
                    yield line[start : start + _MAX_LINE_BYTES // 4]
