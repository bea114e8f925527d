"""ChatGLM-6B's tokenizer: SentencePiece, with tokens for new lines, tabs and runs of spaces.

What surrounds SentencePiece is tokenization_chatglm.py of the official repository, and the parts of
transformers 4 that it relies on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from glimmer.checkpoints import Checkpoint
from glimmer.checkpoints.json_file import read_object
from glimmer.checkpoints.metadata import require_list
from glimmer.errors import TokenizerError
from glimmer.tokenizers import SentencePieceTokenizer, Tokenizer, decode_all, load_model
from glimmer.tokenizers.sentence_piece import SentencePieceDetokenizer
from glimmer.tokenizers.text import no_such_token

MASK, GMASK, SMASK, START, END = "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"
PADDING, TEXT_END = "<pad>", "</s>"
BLANKS = (MASK, SMASK, GMASK)
FILE = "ice_text.model"
GGUF_MODEL = "glimmer.tokenizer.model"
"""Our key for the bytes of ``FILE`` in a GGUF file."""
GGUF_IMAGE_TOKENS = "glimmer.tokenizer.num_image_tokens"
NEWLINE, TAB = "<n>", "<|tab|>"
_MAX_BLANKS = 80
# Special tokens that transformers recognises in text.
_RECOGNISED = (START, END, PADDING, "<unk>", MASK)
_BLANK_PATTERN = re.compile(rf"({'|'.join(map(re.escape, BLANKS))})")


def spaces(count: int) -> str:
    """The piece that stands for so many spaces, 2 to 80."""
    return f"<|blank_{count}|>"


class ChatGLMTokenizer:
    """``num_image_tokens`` ids come before the vocabulary in files of the first days: 20000."""

    def __init__(self, pieces: SentencePieceTokenizer, num_image_tokens: int = 0) -> None:
        self._pieces = pieces
        self.num_image_tokens = num_image_tokens
        self._special_tokens = MappingProxyType(
            {token: i + num_image_tokens for token, i in pieces.special_tokens.items()}
        )
        known = [t for t in _RECOGNISED if t in pieces.special_tokens or t == "<unk>"]
        # transformers drops the space around a token that it recognises.
        self._recognised = re.compile(rf"\s*({'|'.join(map(re.escape, known))})\s*")

    @property
    def model_bytes(self) -> bytes:
        return self._pieces.model_bytes

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size + self.num_image_tokens

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._special_tokens

    @property
    def added_tokens(self) -> Mapping[str, int]:
        return MappingProxyType({})

    def encode(
        self, text: str, allow_special: bool = False, *, allow_added: bool = True
    ) -> list[int]:
        if not allow_special:
            return self._encode_plain(text)
        ids: list[int] = []
        for place, part in enumerate(self._recognised.split(text)):
            if place % 2:
                unknown = self.num_image_tokens  # the first piece
                ids.append(self._special_tokens.get(part, unknown))
            elif part:
                ids += self._encode_plain(part)
        return ids

    def encode_blanks(self, text: str) -> list[int]:
        """Ids of a text in which "[MASK]", "[sMASK]" and "[gMASK]" are those tokens.

        Training takes spans out of a text that was encoded whole, so what follows a blank is
        encoded as the text that goes on: without the space that SentencePiece puts before a text.
        A single space before a blank is dropped: it begins the token that was taken out.
        """
        first, *rest = _BLANK_PATTERN.split(text)
        ids = self._encode_plain(first) if first else []
        for token, part in zip(rest[::2], rest[1::2], strict=True):
            if token not in self._special_tokens:
                raise TokenizerError(f"This tokenizer has no token {token}: use another blank.")
            ids.append(self._special_tokens[token])
            if part:
                # The new line's token ends what it stands in: what follows is as in mid-text.
                new_line = self._encode_plain("\n")[-1]
                going_on = self._encode_plain("\n" + part)
                ids += going_on[going_on.index(new_line) + 1 :]
        return ids

    @staticmethod
    def prepare(text: str) -> str:
        """With the pieces that stand for new lines, tabs and runs of spaces."""
        text = text.replace("\n", NEWLINE).replace("\t", TAB)
        return re.sub(f" {{2,{_MAX_BLANKS}}}", lambda run: spaces(len(run[0])), text)

    def _encode_plain(self, text: str) -> list[int]:
        return [i + self.num_image_tokens for i in self._pieces.encode(self.prepare(text))]

    def decode(self, ids: Iterable[int]) -> str:
        return decode_all(self.detokenizer(), ids)

    def token_bytes(self, token_id: int) -> bytes:
        if 0 <= token_id < self.num_image_tokens:
            return b""
        if token_id < 0:
            raise no_such_token(token_id, self.vocab_size)
        written = self._pieces.token_bytes(token_id - self.num_image_tokens)
        text = _WRITTEN.get(written.decode(errors="replace"))
        return written if text is None else text.encode()

    def detokenizer(self) -> _Detokenizer:
        return _Detokenizer(self._pieces, self.num_image_tokens)


_SPACES = {spaces(n): " " * n for n in range(2, _MAX_BLANKS + 1)}
_WRITTEN: Mapping[str, str] = {NEWLINE: "\n", TAB: "\t", **_SPACES}
_WRITTEN_PATTERN = re.compile("|".join(map(re.escape, _WRITTEN)))
_LONGEST_WRITTEN = max(map(len, _WRITTEN))
_UNFINISHED = tuple(token[:-1] for token in _WRITTEN)
# transformers' clean_up_tokenization, in its order.
_CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
_QUIET = re.compile("[^ ]{4,}")


class _Detokenizer:
    """Holds back what a later character could still change."""

    def __init__(self, pieces: SentencePieceTokenizer, num_image_tokens: int) -> None:
        self._text = SentencePieceDetokenizer(pieces)
        self._offset = num_image_tokens
        self._vocab_size = pieces.vocab_size + num_image_tokens
        self._held_tokens = ""  # may end within "<|tab|>"
        self._held_spaces = ""  # may end within " n't"

    def push(self, token_id: int) -> str:
        if not 0 <= token_id < self._vocab_size:
            raise no_such_token(token_id, self._vocab_size)
        if token_id < self._offset:
            return ""  # an image token says nothing
        return self._clean(self._write(self._text.push(token_id - self._offset)))

    def finish(self) -> str:
        text = self._write(self._text.finish(), final=True)
        return self._clean(text, final=True)

    def _write(self, text: str, final: bool = False) -> str:
        """New lines, tabs and blanks for the tokens that stand for them."""
        text = self._held_tokens + text
        end = len(text)
        if not final:
            begin = text.rfind("<", max(0, end - _LONGEST_WRITTEN + 1))
            if begin >= 0 and any(token.startswith(text[begin:]) for token in _UNFINISHED):
                end = begin
        self._held_tokens = text[end:]
        return _WRITTEN_PATTERN.sub(lambda match: _WRITTEN[match[0]], text[:end])

    def _clean(self, text: str, final: bool = False) -> str:
        """Without the spaces that English punctuation does not have."""
        text = self._held_spaces + text
        end = len(text) if final else _settled(text)
        self._held_spaces = text[end:]
        done = text[:end]
        for found, put in _CLEANED:
            done = done.replace(found, put)
        return done


def _settled(text: str) -> int:
    """Where cleaning up may cut: a replacement reaches three characters beyond its first space."""
    quiet = [run.end() for run in _QUIET.finditer(text)]
    if quiet:
        return quiet[-1]
    first = text.find(" ")
    return len(text) if first < 0 else first


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    if checkpoint.format == "gguf":
        return GGUF_MODEL in checkpoint.metadata
    return checkpoint.file(FILE) is not None


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.format == "gguf":
        what = f"{checkpoint.path} ({GGUF_MODEL})"
        numbers = require_list(
            checkpoint.metadata, GGUF_MODEL, int, checkpoint.path, TokenizerError
        )
        if numbers and not 0 <= min(numbers) <= max(numbers) <= 255:
            raise TokenizerError(f"{what} must be a list of bytes, but it holds other numbers.")
        data = bytes(numbers)
        images = _checked_images(checkpoint.metadata.get(GGUF_IMAGE_TOKENS, 0), what)
    else:
        file = checkpoint.file(FILE)
        assert file is not None, "has_tokenizer comes first"
        data, what, images = file.read_bytes(), str(file), _image_tokens(checkpoint)
    pieces = SentencePieceTokenizer(load_model(data, what), model_bytes=data)
    for token in (MASK, GMASK, START, END):
        if token not in pieces.special_tokens:
            raise TokenizerError(
                f"{what} has no control token {token}: it is not ChatGLM-6B's tokenizer"
            )
    tokenizer = ChatGLMTokenizer(pieces, images)
    expected = checkpoint.metadata.get("bos_token_id")
    if expected is not None and expected != tokenizer.special_tokens[START]:
        raise TokenizerError(
            f"{what} gives {START} the id {tokenizer.special_tokens[START]}, but the config gives "
            f"bos_token_id {expected}. The folder mixes files from before and after 6 April 2023, "
            "when 20000 image tokens were cut from the vocabulary: take config.json, "
            "tokenizer_config.json and the weights from one release."
        )
    return tokenizer


def _image_tokens(checkpoint: Checkpoint) -> int:
    """From tokenizer_config.json; without one the vocabulary's size tells."""
    file = checkpoint.file("tokenizer_config.json")
    if file is None:
        return 20000 if checkpoint.metadata.get("vocab_size") == 150528 else 0
    # The default is the official class's.
    return _checked_images(read_object(file).get("num_image_tokens", 20000), str(file))


def _checked_images(count: object, what: str) -> int:
    if type(count) is not int or not 0 <= count <= 1_000_000:
        raise TokenizerError(f"{what}: the number of image tokens is {count!r:.40}, no count.")
    return count


def stop_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    return (tokenizer.special_tokens[END],)
