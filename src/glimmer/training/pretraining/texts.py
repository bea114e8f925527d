"""From a config to documents and a tokenizer. Knows no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glimmer.catalogue import find_file
from glimmer.checkpoints import open_checkpoint
from glimmer.checkpoints.json_file import read_object
from glimmer.errors import InvalidParameterError, ModelNotFoundError
from glimmer.families import recognise
from glimmer.families.chatglm.tokenizer import (
    END,
    FILE,
    GMASK,
    MASK,
    SMASK,
    START,
    ChatGLMTokenizer,
)
from glimmer.families.chatglm.tokenizer_training import train_tokenizer
from glimmer.tokenizers import SentencePieceTokenizer, load_model
from glimmer.training.blank_infilling import BlankTokens
from glimmer.training.pretraining.config import PretrainConfig
from glimmer.training.pretraining.corpus import read_documents


def split_documents(config: PretrainConfig) -> tuple[list[str], list[str]]:
    """Documents to train on, and those that are held out.

    Raises: as ``read_documents``; InvalidParameterError if there is none.
    """
    documents = list(read_documents(config.data, config.text_field))
    if config.held_out:
        held_out = list(read_documents(config.held_out, config.text_field))
        if not held_out:
            raise InvalidParameterError(
                f"{', '.join(map(str, config.held_out))}: there is no text to measure on."
            )
    else:
        order = np.random.default_rng([config.seed, 3]).permutation(len(documents))
        count = round(config.held_out_share * len(documents))
        chosen = set(order[: max(count, config.held_out_share > 0)].tolist())
        held_out = [text for i, text in enumerate(documents) if i in chosen]
        documents = [text for i, text in enumerate(documents) if i not in chosen]
    if not documents:
        raise InvalidParameterError(
            "There is no text to train on: the files are empty, or all was held out. A folder or "
            ".jsonl file gives many documents; a single text file is one, so name others under "
            "held_out or set held_out_share to 0."
        )
    return documents, held_out


def digest(documents: Iterable[str]) -> str:
    """Tells whether texts are the same, in the same order."""
    total = hashlib.sha256()
    for text in documents:
        total.update(len(text).to_bytes(8) + text.encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def known_tokenizer(config: PretrainConfig) -> ChatGLMTokenizer | None:
    """The base's, or the one that is named; None where one is to be trained.

    Raises:
        ModelNotFoundError: there is no such file.
        InvalidParameterError: the base is of another kind, has a trained prefix, or takes shorter
            texts.
        TokenizerError: a broken file.
    """
    if config.base is not None:
        return _tokenizer_of(config.base, config.row_length)
    return None if config.tokenizer is None else read_tokenizer(config.tokenizer)


def trained_tokenizer(config: PretrainConfig, documents: Iterable[str]) -> ChatGLMTokenizer:
    """Raises InvalidParameterError: texts or a size that give none."""
    return train_tokenizer(
        documents, config.vocab_size, character_coverage=config.character_coverage
    )


def read_tokenizer(folder: Path) -> ChatGLMTokenizer:
    """From a folder with ice_text.model; raises as ``known_tokenizer``."""
    file = folder / FILE
    if not file.is_file():
        raise ModelNotFoundError(f"There is no {FILE} in {folder}.")
    settings = folder / "tokenizer_config.json"
    images = read_object(settings).get("num_image_tokens", 0) if settings.is_file() else 0
    return tokenizer_from(file.read_bytes(), str(file), images)


def tokenizer_from(data: bytes, what: str, num_image_tokens: int = 0) -> ChatGLMTokenizer:
    """Of the bytes of an ice_text.model, which errors call ``what``; raises as
    ``known_tokenizer``."""
    pieces = SentencePieceTokenizer(load_model(data, what), model_bytes=data)
    tokenizer = ChatGLMTokenizer(pieces, num_image_tokens)
    blank_tokens(tokenizer)
    return tokenizer


def blank_tokens(tokenizer: ChatGLMTokenizer) -> BlankTokens:
    """Raises InvalidParameterError if one is missing."""
    ids = tokenizer.special_tokens
    if missing := [name for name in (MASK, SMASK, GMASK, START, END) if name not in ids]:
        raise InvalidParameterError(
            f"The tokenizer has no token {missing[0]}: it is not of ChatGLM-6B's kind."
        )
    return BlankTokens(
        mask=ids[MASK], smask=ids[SMASK], gmask=ids[GMASK], start=ids[START], end=ids[END]
    )


def encode(documents: Sequence[str], tokenizer: ChatGLMTokenizer) -> list[npt.NDArray[np.int32]]:
    return [np.array(tokenizer.encode(text), np.int32) for text in documents]


def licences(model: str) -> dict[str, bytes]:
    """The files of a base that say what may be done with what is made of it."""
    path, _ = find_file(model)
    with open_checkpoint(path) as checkpoint:
        found = {name: checkpoint.file(name) for name in ("LICENSE", "MODEL_LICENSE")}
        return {name: file.read_bytes() for name, file in found.items() if file is not None}


def _tokenizer_of(model: str, row_length: int) -> ChatGLMTokenizer:
    path, _ = find_file(model)
    with open_checkpoint(path) as checkpoint:
        family = recognise(checkpoint)
        architecture = family.architecture(checkpoint)
        if not architecture.fills_blanks or not family.has_tokenizer(checkpoint):
            raise InvalidParameterError(
                f"{path} is of the {family.name} family, or has no tokenizer: blank infilling goes "
                "on with ChatGLM-6B, the first generation, and with what `glimmer pretrain` made."
            )
        if architecture.prefix_length:
            raise InvalidParameterError(
                f"{path} has a trained prefix (P-Tuning v2), which would stay as it is while all "
                "else changes. Take the model without it."
            )
        if row_length > architecture.max_position:
            raise InvalidParameterError(
                f"row_length is {row_length}, but {path} is made for texts of "
                f"{architecture.max_position} tokens. Give a shorter one."
            )
        tokenizer = family.tokenizer(checkpoint)
    assert isinstance(tokenizer, ChatGLMTokenizer), "the one family that fills blanks"
    return tokenizer
