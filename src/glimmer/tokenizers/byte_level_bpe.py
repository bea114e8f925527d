"""Byte-level BPE, the tokenizer of GPT-2's line, on the Rust library ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import tokenizers
from tokenizers import models, pre_tokenizers

from glimmer.errors import TokenizerError
from glimmer.tokenizers.byte_alphabet import BYTE_OF
from glimmer.tokenizers.detokenizer import ByteDetokenizer
from glimmer.tokenizers.pre_tokenizers import PreTokenizer
from glimmer.tokenizers.text import alternatives, check_unicode, no_such_token


class ByteLevelBPETokenizer:
    """A ``Tokenizer`` that threads may share: nothing it is asked changes what it answers.

    Bytes for which the vocabulary has no token (SmolLM2's has none for U+0004, say) encode to
    nothing, as they do in the reference implementations.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[str],
        *,
        pre_tokenizer: PreTokenizer,
        control_ids: Collection[int] = (),
        added_ids: Collection[int] = (),
        unused_ids: Collection[int] = (),
    ) -> None:
        """``tokens`` by id; ``merges`` as "left right", the most important first.

        Tokens are spelt in GPT-2's byte alphabet, except for three kinds that hold plain text and
        take no part in merging: control tokens; added tokens, which are ordinary text but always
        matched as a whole; unused ones, which are never produced.

        Raises TokenizerError, naming the token or merge, if the lists contradict each other.
        """
        _refuse_repeats(tokens, "token")
        _refuse_repeats(merges, "merge")
        if "" in tokens:
            raise TokenizerError(f"token {tokens.index('')} is empty")
        self._vocab_size = len(tokens)
        self.pre_tokenizer = pre_tokenizer
        self._silent_ids = frozenset(control_ids) | frozenset(unused_ids)
        self._special_tokens = MappingProxyType({tokens[i]: i for i in sorted(control_ids)})
        # Filled as needed: spelling out 150,000 tokens would dominate the time it takes to load.
        self._bytes: list[bytes | None] = [None] * len(tokens)

        self._added_tokens = {i: tokens[i] for i in added_ids}
        added = {token: i for i, token in self._added_tokens.items()}
        plain = self._silent_ids | self._added_tokens.keys()
        assert self._silent_ids.isdisjoint(self._added_tokens), "an id has two kinds"
        vocab = {token: i for i, token in enumerate(tokens) if i not in plain}
        _check_alphabet(vocab)
        self._model = _build_model(vocab, merges, pre_tokenizer)
        self._added_by_text = MappingProxyType(added)
        self._whole_ids = MappingProxyType({**added, **self._special_tokens})
        self._patterns = {
            (special, plain): alternatives(
                {**(self._special_tokens if special else {}), **(added if plain else {})}
            )
            for special in (False, True)
            for plain in (False, True)
        }

    @property
    def merges(self) -> list[str]:
        """Each as "left right", the most important first."""
        state = json.loads(self._model.to_str())["model"]["merges"]
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in state]

    @property
    def spelt_tokens(self) -> list[str]:
        """Ordinary tokens by id, as they are spelt; "" for all others."""
        # Neither control nor added tokens are in the library's vocabulary.
        return [self._model.id_to_token(i) or "" for i in range(self._vocab_size)]

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._special_tokens

    @property
    def added_tokens(self) -> Mapping[str, int]:
        return self._added_by_text

    def encode(
        self, text: str, allow_special: bool = False, *, allow_added: bool = True
    ) -> list[int]:
        """See ``Tokenizer``. Where whole tokens overlap, the longest is taken."""
        check_unicode(text)
        pattern = self._patterns[allow_special, allow_added]
        if pattern is None:
            return self._merge(text)
        ids: list[int] = []
        # re.split with one group: text between matches at even places, matches at odd ones.
        for place, piece in enumerate(pattern.split(text)):
            if place % 2:
                ids.append(self._whole_ids[piece])
            elif piece:
                ids += self._merge(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def detokenizer(self) -> ByteDetokenizer:
        return ByteDetokenizer(self.token_bytes)

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one id, possibly part of a character; b"" for control tokens.

        Raises InvalidParameterError for an unknown id.
        """
        if not 0 <= token_id < self._vocab_size:
            raise no_such_token(token_id, self._vocab_size)
        known = self._bytes[token_id]
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._silent_ids:
            return b""
        if token_id in self._added_tokens:
            return self._added_tokens[token_id].encode("utf-8")
        # The library keeps the vocabulary already; a second copy would be felt in memory.
        token = self._model.id_to_token(token_id)
        assert token is not None, "every other token is in the vocabulary"
        return bytes(BYTE_OF[character] for character in token)

    def _merge(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids


def _refuse_repeats(items: Sequence[str], what: str) -> None:
    if len(set(items)) == len(items):
        return
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        if item in first:
            raise TokenizerError(
                f"{what}s {first[item]} and {index} are both {item!r}; {what}s must differ"
            )
        first[item] = index


def _check_alphabet(vocab: Mapping[str, int]) -> None:
    foreign = set().union(*vocab) - BYTE_OF.keys()
    for token, token_id in vocab.items() if foreign else ():
        if not foreign.isdisjoint(token):
            raise TokenizerError(
                f"token {token_id}, {token!r}, is not spelt in the byte alphabet of GPT-2: the "
                "vocabulary is not byte-level, or the token should be marked as user-defined"
            )


def _build_model(
    vocab: dict[str, int], merges: Sequence[str], pre_tokenizer: PreTokenizer
) -> tokenizers.Tokenizer:
    pairs = [merge.partition(" ")[::2] for merge in merges]
    _check_merges(pairs, vocab)
    bpe = models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre_tokenizer.ignore_merges)
    try:
        pattern = tokenizers.Regex(pre_tokenizer.pattern)
    except Exception as error:  # the library has no class of its own for it
        raise TokenizerError(
            f"the pattern that cuts text is no regular expression: {error}"
        ) from error
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(pattern, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    if pre_tokenizer.individual_digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    model = tokenizers.Tokenizer(bpe)
    model.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return model


def _check_merges(pairs: Sequence[tuple[str, str]], vocab: Mapping[str, int]) -> None:
    # Not left to the library, which ends in a panic where only the merged token is missing.
    for rank, (left, right) in enumerate(pairs):
        if left in vocab and right in vocab and left + right in vocab:
            continue
        missing = next(token for token in (left, right, left + right) if token not in vocab)
        raise TokenizerError(
            f"merge {rank}, '{left} {right}', needs the token {missing!r}, which the vocabulary "
            "does not have as an ordinary token"
        )
