from __future__ import annotations

import re
import threading

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from glimmer.errors import InvalidParameterError, TokenizerError
from glimmer.tokenizers import ByteLevelBPETokenizer, Tokenizer
from glimmer.tokenizers.byte_alphabet import BYTE_OF
from glimmer.tokenizers.pre_tokenizers import GGUF_PRE_TOKENIZERS
from tests.support.tiny_bpe import ADDED_TOKEN, CONTROL_TOKENS, tiny_bpe

SMOLLM, GLM4 = GGUF_PRE_TOKENIZERS["smollm"], GGUF_PRE_TOKENIZERS["glm4"]
BYTE_TOKENS = tuple(BYTE_OF)
TOKENS, MERGES = tiny_bpe()
FIRST_CONTROL = len(TOKENS)
ADDED_ID = FIRST_CONTROL + len(CONTROL_TOKENS)

TINY: Tokenizer = ByteLevelBPETokenizer(
    [*TOKENS, *CONTROL_TOKENS, ADDED_TOKEN],
    MERGES,
    pre_tokenizer=SMOLLM,
    control_ids=range(FIRST_CONTROL, ADDED_ID),
    added_ids=[ADDED_ID],
)
TEXTS = [
    "",
    "The quick brown fox",
    "  two  spaces\n\n\ttabs \r\n end ",
    "It's 2024, I'LL say: don't 123456",
    "你好，世界。今天天气很好",
    "😀👍🏽 ①② Ⅷ déjà vu",
    "\x00\x04\x1f\x7f",
]


def test_the_alphabet_is_that_of_gpt2() -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert sorted(BYTE_OF) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert {"Ġ": 0x20, "Ċ": 0x0A, "A": 0x41, "ł": 0xA0, "Ń": 0xAD}.items() <= BYTE_OF.items()


@pytest.mark.parametrize("text", TEXTS)
def test_smollm_pieces_are_those_of_its_published_pipeline(text: str) -> None:
    vocab = {token: i for i, token in enumerate(TOKENS)}
    published = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=[merge.partition(" ")[::2] for merge in MERGES])
    )
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    assert TINY.encode(text) == published.encode(text).ids


def pieces(text: str, *tokens: str) -> list[str]:
    """How GLM-4's convention cuts ``text``, given ``tokens`` that stand for whole pieces."""
    tokenizer = ByteLevelBPETokenizer([*BYTE_TOKENS, *tokens], [], pre_tokenizer=GLM4)
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def test_glm4_pieces() -> None:
    assert pieces("1234567", "123", "456", "1234") == ["123", "456", "7"]
    assert pieces("I'LL", "'LL", "LL") == ["I", "'LL"]
    assert pieces("a  b", "Ġb", "ĠĠb") == ["a", " ", " b"]
    assert pieces("a.b", ".b", "a.b") == ["a", ".b"]
    assert pieces("!\n\n", "!ĊĊ") == ["!\n\n"]
    # Without a token for the whole piece, and without merges, every byte is by itself.
    assert pieces("Ab") == ["A", "b"]


@given(st.text())
def test_decoding_gives_the_text_back(text: str) -> None:
    ids = TINY.encode(text)
    assert TINY.decode(ids) == text
    assert b"".join(map(TINY.token_bytes, ids)) == text.encode()
    assert all(0 <= i < TINY.vocab_size for i in ids)


@given(st.lists(st.sampled_from([*CONTROL_TOKENS, ADDED_TOKEN, "<|", "|>", "im_start", " a"])))
def test_text_never_becomes_a_control_token_unless_allowed(parts: list[str]) -> None:
    text = "".join(parts)
    plain = TINY.encode(text)
    assert not set(TINY.special_tokens.values()) & set(plain)
    assert TINY.decode(plain) == text
    allowed = TINY.encode(text, allow_special=True)
    assert [i for i in allowed if i in TINY.special_tokens.values()] == [
        TINY.special_tokens[found]  # the parts may spell out a control token between them
        for found in re.findall("|".join(map(re.escape, CONTROL_TOKENS)), text)
    ]


def test_special_tokens_are_the_control_tokens() -> None:
    assert dict(TINY.special_tokens) == {
        text: FIRST_CONTROL + index for index, text in enumerate(CONTROL_TOKENS)
    }
    assert TINY.vocab_size == ADDED_ID + 1


def test_whole_tokens_in_text() -> None:
    start, end = TINY.special_tokens["<|im_start|>"], TINY.special_tokens["<|im_end|>"]
    ids = TINY.encode("<|im_start|>The<think>dog<|im_end|>", allow_special=True)
    assert ids == [start, *TINY.encode("The"), ADDED_ID, *TINY.encode("dog"), end]
    assert TINY.decode(ids) == "The<think>dog"
    assert TINY.token_bytes(start) == b""
    assert TINY.token_bytes(ADDED_ID) == b"<think>"
    assert ADDED_ID in TINY.encode("a<think>b")


def test_of_overlapping_whole_tokens_the_longest_is_taken() -> None:
    texts = ["<a>", "<a><b>", "<b>", "   ", "  "]
    first = len(BYTE_TOKENS)
    tokenizer = ByteLevelBPETokenizer(
        [*BYTE_TOKENS, *texts],
        [],
        pre_tokenizer=SMOLLM,
        control_ids=[first, first + 1, first + 2],
        added_ids=[first + 3, first + 4],
    )
    ids = tokenizer.encode("<a><b><b><a>     ", allow_special=True)
    assert [i - first for i in ids] == [1, 2, 0, 3, 4]


def test_a_control_token_spelt_like_a_whole_piece_is_not_taken_from_text() -> None:
    tokenizer = ByteLevelBPETokenizer(
        [*BYTE_TOKENS, "sop"], [], pre_tokenizer=GLM4, control_ids=[256]
    )
    assert 256 not in tokenizer.encode("sop")
    assert tokenizer.encode("sop", allow_special=True) == [256]


def test_unused_tokens_are_neither_produced_nor_shown() -> None:
    tokenizer = ByteLevelBPETokenizer(
        [*BYTE_TOKENS, "pad"], [], pre_tokenizer=GLM4, unused_ids=[256]
    )
    assert 256 not in tokenizer.encode("pad", allow_special=True)
    assert tokenizer.decode([256]) == ""
    assert not tokenizer.special_tokens


def test_bytes_without_a_token_encode_to_nothing() -> None:
    tokenizer = ByteLevelBPETokenizer(["a", "b"], [], pre_tokenizer=SMOLLM)
    assert tokenizer.encode("a?b") == [0, 1]


def test_broken_utf8_decodes_to_replacement_characters() -> None:
    first_byte_of_three = BYTE_TOKENS.index("ä")
    tokenizer = ByteLevelBPETokenizer(BYTE_TOKENS, [], pre_tokenizer=SMOLLM)
    assert tokenizer.decode([first_byte_of_three, BYTE_TOKENS.index("a")]) == "\ufffda"


@pytest.mark.parametrize("token_id", [-1, ADDED_ID + 1, 10**9])
def test_an_id_out_of_range_is_refused(token_id: int) -> None:
    with pytest.raises(InvalidParameterError, match=f"token {token_id}; ids are 0 to {ADDED_ID}"):
        TINY.token_bytes(token_id)
    with pytest.raises(InvalidParameterError):
        TINY.decode([0, token_id])


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match=r"'\\ud83d' at position 3"):
        TINY.encode("abc\ud83d")


@pytest.mark.parametrize(
    ("tokens", "merges", "fragments"),
    [
        (["a", "b", "a"], [], ["tokens 0 and 2", "'a'"]),
        (["a", ""], [], ["token 1", "empty"]),
        (["a", "b c"], [], ["token 1", "'b c'", "byte alphabet"]),
        (["a", "你"], [], ["token 1", "'你'", "byte alphabet"]),
        (["a", "b", "ab"], ["a b", "a b"], ["merges 0 and 1", "'a b'"]),
        (["a", "b", "ab"], ["a b", "a c"], ["merge 1", "'a c'", "token 'c'"]),
        (["a", "b"], ["a b"], ["merge 0", "token 'ab'"]),
        (["a", "b", "ab"], ["ab"], ["merge 0", "'ab '", "token ''"]),
        (["a", "b", "ab"], ["a b b"], ["merge 0", "token 'b b'"]),
    ],
)
def test_lists_that_contradict_each_other_are_refused(
    tokens: list[str], merges: list[str], fragments: list[str]
) -> None:
    with pytest.raises(TokenizerError) as caught:
        ByteLevelBPETokenizer(tokens, merges, pre_tokenizer=SMOLLM)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_merge_cannot_make_a_control_token() -> None:
    with pytest.raises(TokenizerError, match="token 'ab', which the vocabulary does not have as"):
        ByteLevelBPETokenizer(["a", "b", "ab"], ["a b"], pre_tokenizer=SMOLLM, control_ids=[2])


@settings(max_examples=10)
@given(st.lists(st.text(), min_size=2, max_size=8))
def test_threads_may_share_a_tokenizer(texts: list[str]) -> None:
    expected = [TINY.encode(text, allow_special=i % 2 == 0) for i, text in enumerate(texts)]
    found: list[list[int]] = [[]] * len(texts)

    def run(i: int) -> None:
        for _ in range(5):
            found[i] = TINY.encode(texts[i], allow_special=i % 2 == 0)
            TINY.decode(found[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
