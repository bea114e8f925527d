from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.tokenizers import ByteDetokenizer
from glimmer.tokenizers.detokenizer import EACH_BYTE


def token_bytes(token_id: int) -> bytes:
    """One token per byte, so that every character of more than one byte is cut; 256 is control."""
    return bytes([token_id]) if token_id < 256 else b""


def stream(ids: Iterable[int], errors: str = "replace") -> tuple[list[str], str]:
    detokenizer = ByteDetokenizer(token_bytes, errors)
    return [detokenizer.push(i) for i in ids], detokenizer.finish()


texts = st.one_of(
    st.text(),
    st.text(st.sampled_from("aé你好，世界😀👍🏽👩‍👩‍👧‍👦🇩🇪é\n ")),
)


@given(texts)
def test_valid_text_arrives_whole_characters_at_a_time(text: str) -> None:
    pieces, rest = stream(text.encode())
    assert "".join(pieces) == text
    assert rest == ""
    # With one byte per token, a character appears with its last byte, and no other push yields.
    assert [piece for piece in pieces if piece] == list(text)


@given(st.lists(st.integers(0, 256)))
def test_any_bytes_joined_are_what_decode_gives(ids: list[int]) -> None:
    pieces, rest = stream(ids)
    assert "".join(pieces) + rest == b"".join(map(token_bytes, ids)).decode(errors="replace")


def test_broken_text_may_give_a_sign_for_each_byte() -> None:
    pieces, rest = stream([*"你".encode()[:2], 65, 0xFF], EACH_BYTE)
    assert "".join(pieces) + rest == "\ufffd\ufffdA\ufffd"


@given(texts, st.integers(0, 3))
def test_a_cut_character_is_held_back_until_the_end(text: str, kept: int) -> None:
    ids = [*text.encode(), *"😀".encode()[:kept]]
    pieces, rest = stream(ids)
    assert "".join(pieces) == text
    assert rest == ("\ufffd" if kept else "")


@pytest.mark.parametrize("text", ["你", "😀"])
def test_control_tokens_give_nothing_and_do_not_cut_a_character(text: str) -> None:
    first, *others = text.encode()
    pieces, rest = stream([first, 256, *others, 256])
    assert "".join(pieces) + rest == text
