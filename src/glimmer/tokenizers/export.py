"""Tokenizers in the forms of others: the keys of GGUF, and tokenizer.json.

Token types and keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md ("Tokenizer").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as LibraryTokenizer

from glimmer.checkpoints.gguf_writer import GGUFValue
from glimmer.tokenizers.byte_alphabet import BYTE_OF
from glimmer.tokenizers.byte_level_bpe import ByteLevelBPETokenizer
from glimmer.tokenizers.gguf_sentence_piece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from glimmer.tokenizers.ranked_bpe import RankedBPETokenizer
from glimmer.tokenizers.sentence_piece import SPACE, SentencePieceTokenizer

_CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}

ByteLevelTokenizer = ByteLevelBPETokenizer | RankedBPETokenizer


def spelt(token: bytes) -> str:
    """A token in GPT-2's byte alphabet."""
    return "".join(map(_CHARACTER_OF.__getitem__, token))


def merges_of(tokens: Sequence[bytes]) -> list[tuple[str, str]]:
    """All pairs of tokens that make another, in the order in which tiktoken would merge them.

    tiktoken joins whichever neighbours make the token of lowest rank: so every way to cut a token
    in two tokens is a merge, and not only the first that was learnt.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        pairs = [
            (ranks[left], ranks[right])
            for cut in range(1, len(token))
            if (left := token[:cut]) in ranks and (right := token[cut:]) in ranks
        ]
        merges += sorted(pairs)
    names = list(map(spelt, tokens))
    return [(names[left], names[right]) for left, right in merges]


def byte_level_gguf(
    tokenizer: ByteLevelTokenizer, vocab_size: int, pre_tokenizer: str
) -> dict[str, GGUFValue]:
    """Byte-level BPE as llama.cpp's "gpt2"; rows that no token has are named as padding."""
    if isinstance(tokenizer, RankedBPETokenizer):
        tokens = list(map(spelt, tokenizer.tokens))
        merges = [" ".join(pair) for pair in merges_of(tokenizer.tokens)]
    else:
        tokens, merges = list(tokenizer.spelt_tokens), list(tokenizer.merges)
    types = [NORMAL] * len(tokens)
    for kind, named in (
        (CONTROL, tokenizer.special_tokens),
        (USER_DEFINED, tokenizer.added_tokens),
    ):
        for token, token_id in named.items():
            tokens += [""] * (token_id + 1 - len(tokens))
            types += [UNUSED] * (token_id + 1 - len(types))
            tokens[token_id], types[token_id] = token, kind
    types += [UNUSED] * (vocab_size - len(types))
    tokens += [""] * (vocab_size - len(tokens))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer,
        "tokenizer.ggml.tokens": [token or f"[PAD{i}]" for i, token in enumerate(tokens)],
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
    }


def sentence_piece_gguf(tokenizer: SentencePieceTokenizer, vocab_size: int) -> dict[str, GGUFValue]:
    """A SentencePiece vocabulary as llama.cpp's "llama"."""
    tokens, scores, types = [], [], []
    for i in range(tokenizer.num_pieces):
        piece, score = tokenizer.piece(i)
        tokens.append(piece)
        scores.append(score)
        types.append(_piece_type(tokenizer, i, piece))
    special = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    appended = [token for token, i in special if i >= tokenizer.num_pieces]
    tokens += appended
    types += [CONTROL] * len(appended)
    tokens += [f"[PAD{i}]" for i in range(len(tokens), vocab_size)]
    types += [UNUSED] * (len(tokens) - len(types))
    scores += [0.0] * (len(tokens) - len(scores))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "chatglm-spm",  # the name that llama.cpp has for these vocabularies
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }


def _piece_type(tokenizer: SentencePieceTokenizer, token_id: int, piece: str) -> int:
    if tokenizer.is_byte(token_id):
        return BYTE
    if tokenizer.is_unknown(token_id):
        return UNKNOWN
    return CONTROL if piece in tokenizer.special_tokens else NORMAL


def byte_level_json(tokenizer: ByteLevelTokenizer, prefix: Sequence[str] = ()) -> bytes:
    """Byte-level BPE as tokenizer.json; ``prefix`` names the control tokens before every text."""
    if isinstance(tokenizer, RankedBPETokenizer):
        vocab = {spelt(token): i for i, token in enumerate(tokenizer.tokens)}
        merges = merges_of(tokenizer.tokens)
    else:
        vocab = {token: i for i, token in enumerate(tokenizer.spelt_tokens) if token}
        last = max(vocab.values(), default=0)
        # The library numbers what it adds from the end on, unless the vocabulary has it already.
        whole = {**tokenizer.special_tokens, **tokenizer.added_tokens}
        vocab |= {token: i for token, i in whole.items() if i < last}
        merges = [(left, right) for left, _, right in (m.partition(" ") for m in tokenizer.merges)]
    pre = tokenizer.pre_tokenizer
    library = LibraryTokenizer(
        models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.ignore_merges)
    )
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pre.individual_digits else []
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *digits,
            pre_tokenizers.Split(Regex(pre.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    _add_tokens(library, tokenizer.special_tokens, tokenizer.added_tokens)
    return _finished(
        library, prefix, tokenizer.special_tokens, processors.ByteLevel(trim_offsets=False)
    )


def sentence_piece_json(
    tokenizer: SentencePieceTokenizer,
    prefix: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> bytes:
    """A SentencePiece BPE vocabulary as tokenizer.json.

    ``renamed`` gives control tokens another text: the library finds them wherever they occur, and
    "sop" is a part of words.
    """
    pieces = [tokenizer.piece(i) for i in range(tokenizer.num_pieces)]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces:
        pairs = [
            (ids[left], ids[right], score)
            for cut in range(1, len(piece))
            if (left := piece[:cut]) in ids and (right := piece[cut:]) in ids
        ]
        merges += sorted(pairs)
    merges.sort(key=lambda merge: -merge[2])  # the likeliest piece first; sorting is stable
    library = LibraryTokenizer(
        models.BPE(
            vocab=ids,
            merges=[(pieces[left][0], pieces[right][0]) for left, right, _ in merges],
            unk_token=pieces[0][0],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = {
        (renamed or {}).get(token, token): i for token, i in tokenizer.special_tokens.items()
    }
    _add_tokens(library, special, {})
    return _finished(library, prefix, special, None)


def _add_tokens(
    library: LibraryTokenizer, special: Mapping[str, int], added: Mapping[str, int]
) -> None:
    """Added in order of their ids, which the library deals out itself."""
    for token, token_id in sorted({**special, **added}.items(), key=lambda item: item[1]):
        entry = AddedToken(token, special=token in special, normalized=False)
        if token in special:
            library.add_special_tokens([entry])
        else:
            library.add_tokens([entry])
        assert library.token_to_id(token) == token_id, f"{token} got another id"


def _finished(
    library: LibraryTokenizer,
    prefix: Sequence[str],
    special: Mapping[str, int],
    post_processor: Any,
) -> bytes:
    if prefix:
        library.post_processor = processors.TemplateProcessing(
            single=[*prefix, "$A"],
            pair=[*prefix, "$A", "$B:1"],
            special_tokens=[(token, special[token]) for token in prefix],
        )
    elif post_processor is not None:
        library.post_processor = post_processor
    text: str = library.to_str(pretty=False)
    return text.encode("utf-8")


def tokenizer_config(
    *, eos: str, pad: str, chat_template: str | None, unk: str | None = None
) -> bytes:
    """tokenizer_config.json for transformers' generic class."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "pad_token": pad,
        "padding_side": "left",
    }
    if unk is not None:
        config["unk_token"] = unk
    if chat_template is not None:
        config["chat_template"] = chat_template
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
