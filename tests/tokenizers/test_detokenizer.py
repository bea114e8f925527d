from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.tokenizers import Detokenizer, Tokenizer


class ByteTokenizer:
    """One token per byte, so that every character of more than one byte is cut."""

    vocab_size = 257
    special_tokens: Mapping[str, int] = MappingProxyType({"<|end|>": 256})

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""


TOKENIZER: Tokenizer = ByteTokenizer()


def stream(ids: Iterable[int]) -> tuple[list[str], str]:
    detokenizer = Detokenizer(TOKENIZER)
    return [detokenizer.push(i) for i in ids], detokenizer.finish()


texts = st.one_of(
    st.text(),
    st.text(st.sampled_from("aé你好，世界😀👍🏽👩‍👩‍👧‍👦🇩🇪é\n ")),
)


@given(texts)
def test_valid_text_arrives_whole_characters_at_a_time(text: str) -> None:
    pieces, rest = stream(TOKENIZER.encode(text))
    assert "".join(pieces) == text
    assert rest == ""
    # With one byte per token, a character appears with its last byte, and no other push yields.
    assert [piece for piece in pieces if piece] == list(text)


@given(st.lists(st.integers(0, 256)))
def test_any_bytes_joined_are_what_decode_gives(ids: list[int]) -> None:
    pieces, rest = stream(ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(ids)


@given(texts, st.integers(0, 3))
def test_a_cut_character_is_held_back_until_the_end(text: str, kept: int) -> None:
    ids = [*TOKENIZER.encode(text), *"😀".encode()[:kept]]
    pieces, rest = stream(ids)
    assert "".join(pieces) == text
    assert rest == ("\ufffd" if kept else "")


@pytest.mark.parametrize("text", ["你", "😀"])
def test_control_tokens_give_nothing_and_do_not_cut_a_character(text: str) -> None:
    first, *others = TOKENIZER.encode(text)
    pieces, rest = stream([first, 256, *others, 256])
    assert "".join(pieces) + rest == text
