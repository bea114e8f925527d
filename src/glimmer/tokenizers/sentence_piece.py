"""SentencePiece vocabularies, on the library ``sentencepiece``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import sentencepiece

from glimmer.errors import TokenizerError
from glimmer.tokenizers.detokenizer import EACH_BYTE, ByteDetokenizer, decode_all
from glimmer.tokenizers.text import (
    alternatives,
    check_unicode,
    no_such_token,
    refuse_pointer,
)

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How a piece spells a space."""
_MIN_MODEL_BYTES = 16


def load_model(data: bytes, what: str) -> sentencepiece.SentencePieceProcessor:
    """The model in a ``.model`` file's bytes; ``what`` names it in errors.

    Raises:
        TokenizerError: not such a file, or a damaged one.
    """
    refuse_pointer(data, what)
    try:
        if len(data) < _MIN_MODEL_BYTES:
            raise ValueError(f"it has {len(data)} bytes")
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
        if model.vocab_size() < 1:
            raise ValueError("it has no pieces")
        model.id_to_piece(list(range(model.vocab_size())))  # each must be text
    except (RuntimeError, ValueError, OSError) as error:
        raise TokenizerError(
            f"{what} is not a SentencePiece model, or is damaged ({error}): download it again"
        ) from error
    return model


class SentencePieceTokenizer:
    """A SentencePiece model, and control tokens that follow its pieces in the vocabulary.

    Nothing in a text becomes a control token but, with ``allow_special``, those of
    ``recognised``. A control token decodes to its own text where it is in ``printed``, else to
    nothing. Threads may share it.
    """

    def __init__(
        self,
        model: sentencepiece.SentencePieceProcessor,
        *,
        model_bytes: bytes,
        special_tokens: Sequence[str] = (),
        recognised: Iterable[str] = (),
        printed: Iterable[str] = (),
    ) -> None:
        self._model = model
        self.model_bytes = model_bytes
        """The file that the model came from."""
        first = model.vocab_size()
        controls = {model.id_to_piece(i): i for i in range(first) if model.is_control(i)}
        appended = {token: first + i for i, token in enumerate(special_tokens)}
        self._special_tokens = MappingProxyType({**controls, **appended})
        self._vocab_size = first + len(special_tokens)
        self._recognised = {token: self._special_tokens[token] for token in recognised}
        self._pattern = alternatives(self._recognised)
        printed = frozenset(printed)
        self._appended_bytes = [t.encode() if t in printed else b"" for t in special_tokens]
        self._bytes: dict[int, bytes] = {}

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._special_tokens

    @property
    def added_tokens(self) -> Mapping[str, int]:
        return MappingProxyType({})

    @property
    def num_pieces(self) -> int:
        """Ids below this are the model's own."""
        return self._vocab_size - len(self._appended_bytes)

    def piece(self, token_id: int) -> tuple[str, float]:
        """Spelling and score of one of the model's pieces."""
        return self._model.id_to_piece(token_id), self._model.get_score(token_id)

    def is_unknown(self, token_id: int) -> bool:
        return bool(self._model.is_unknown(token_id))

    def is_byte(self, token_id: int) -> bool:
        return bool(self._model.is_byte(token_id))

    def encode(
        self, text: str, allow_special: bool = False, *, allow_added: bool = True
    ) -> list[int]:
        check_unicode(text)
        if not allow_special or self._pattern is None:
            return self.encode_plain(text)
        ids: list[int] = []
        # re.split with one group: text between matches at even places, matches at odd ones.
        for place, part in enumerate(self._pattern.split(text)):
            if place % 2:
                ids.append(self._recognised[part])
            elif part:
                ids += self.encode_plain(part)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing has a meaning of its own."""
        ids: list[int] = self._model.encode(text)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return decode_all(self.detokenizer(), ids)

    def detokenizer(self) -> SentencePieceDetokenizer:
        return SentencePieceDetokenizer(self)

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one id, its leading space included; b"" for what is not printed.

        Raises InvalidParameterError for an unknown id.
        """
        if not 0 <= token_id < self._vocab_size:
            raise no_such_token(token_id, self._vocab_size)
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        if token_id >= self.num_pieces:
            return self._appended_bytes[token_id - self.num_pieces]
        model = self._model
        if model.is_control(token_id) or model.is_unknown(token_id) or model.is_unused(token_id):
            return b""
        piece: str = model.id_to_piece(token_id)
        if model.is_byte(token_id):  # <0x0A>
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()


class SentencePieceDetokenizer:
    """The space that begins the first piece is the one that encoding put there: it goes."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        self._at_start = True
        self._token_bytes = tokenizer.token_bytes
        self._bytes = ByteDetokenizer(self._next_bytes, EACH_BYTE)  # as the library does

    def push(self, token_id: int) -> str:
        return self._bytes.push(token_id)

    def finish(self) -> str:
        return self._bytes.finish()

    def _next_bytes(self, token_id: int) -> bytes:
        data = self._token_bytes(token_id)
        if self._at_start and data:
            self._at_start = False
            return data.removeprefix(b" ")
        return data
