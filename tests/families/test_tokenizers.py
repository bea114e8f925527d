"""The real tokenizers against what the official code gave for them."""

from __future__ import annotations

import importlib
import json
import time
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimmer.checkpoints import ConfigCheckpoint
from glimmer.errors import InvalidParameterError
from glimmer.tokenizers import Tokenizer
from tests.support import golden

FOLDERS = {
    "chatglm": "chatglm-6b",
    "chatglm2": "chatglm2-6b",
    "chatglm3": "chatglm3-6b",
    "glm4": "glm-4-9b-chat",
    "glm4_0414": "glm-4-0414-RECONSTRUCTED",
    "glm45": "glm-4.5-RECONSTRUCTED",
}
PROMPTS = {
    "chatglm": "chatglm-6b",
    "chatglm2": "chatglm2-6b",
    "chatglm3": "chatglm3-6b",
    "glm4": "glm-4-9b-chat",
    "glm45": "glm-4.5",
}


@cache
def load(family: str, folder: str | None = None) -> Tokenizer:
    path = golden.FOLDER.parent / "tokenizers" / (folder or FOLDERS[family])
    if not path.is_dir():
        pytest.skip(f"no tokenizer at {path}")
    module = importlib.import_module(f"glimmer.families.{family}.tokenizer")
    checkpoint = ConfigCheckpoint(path, {"some": "config"})
    assert module.has_tokenizer(checkpoint)
    tokenizer: Tokenizer = module.load_tokenizer(checkpoint)
    return tokenizer


def cases(key: str) -> list[Any]:
    """A family and a case for each."""
    cases = []
    for family, name in PROMPTS.items():
        path = golden.FOLDER / "prompts" / f"{name}.json"
        found = json.loads(path.read_text(encoding="utf-8")).get(key, []) if path.exists() else []
        for i, case in enumerate(found):
            cases.append(pytest.param(family, case, id=f"{family}-{i}"))
    return cases


@pytest.mark.parametrize(("family", "case"), cases("texts"))
def test_texts(family: str, case: dict[str, Any]) -> None:
    tokenizer = load(family)
    # ChatGLM3 recognises special tokens in text only with an option, which has a test of its own.
    official = tokenizer.encode(case["text"], allow_special=family != "chatglm3")
    assert official == case["ids_no_special"]
    safe = tokenizer.encode(case["text"], allow_added=False)
    assert set(safe).isdisjoint(tokenizer.special_tokens.values())
    assert set(safe).isdisjoint(tokenizer.added_tokens.values())


@pytest.mark.parametrize(("family", "case"), cases("decode_cases"))
def test_decoding(family: str, case: dict[str, Any]) -> None:
    assert load(family).decode(case["ids"]) == case["text_skip_special"]


@pytest.mark.parametrize(("family", "case"), cases("texts"))
def test_decoding_of_texts(family: str, case: dict[str, Any]) -> None:
    expected = case.get("decode_of_ids_no_special", case.get("decode"))
    tokenizer = load(family)
    ids = case["ids_no_special"]
    if not set(ids).isdisjoint(tokenizer.special_tokens.values()) and family != "chatglm":
        pytest.skip("the expected text prints special tokens, which an answer does not")
    assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize(("family", "case"), cases("encode_special_tokens_true"))
def test_official_special_tokens_in_text(family: str, case: dict[str, Any]) -> None:
    assert load(family).encode(case["text"], allow_special=True) == case["ids"]


@pytest.mark.parametrize("family", FOLDERS)
def test_a_users_text_never_becomes_a_special_token(family: str) -> None:
    tokenizer = load(family)
    for token in (*tokenizer.special_tokens, *tokenizer.added_tokens):
        for text in (token, f"a {token}b", f"{token}{token}\n"):
            ids = tokenizer.encode(text, allow_added=False)
            assert set(ids).isdisjoint(tokenizer.special_tokens.values())
            assert set(ids).isdisjoint(tokenizer.added_tokens.values())


@pytest.mark.parametrize("family", FOLDERS)
@given(data=st.data())
def test_streaming_gives_what_decoding_gives(family: str, data: st.DataObject) -> None:
    tokenizer = load(family)
    interesting = [
        i for text in (" ' . 's n't <n> <|tab|> x", "你好\t\n  é") for i in tokenizer.encode(text)
    ]
    ids = data.draw(
        st.lists(
            st.sampled_from(interesting) | st.integers(0, tokenizer.vocab_size - 1), max_size=30
        )
    )
    stream = tokenizer.detokenizer()
    pieces = [*map(stream.push, ids), stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)


def shared_cases(name: str) -> Any:
    path = golden.FOLDER / "cases" / name
    return json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else []


_TEXTS = shared_cases("chatglm_cpp_text.json") or {}


@pytest.mark.parametrize(
    ("family", "case"),
    [
        ({"chatglm-6b": "chatglm", "chatglm2-6b": "chatglm2"}[generation], case)
        for generation, found in dict(_TEXTS).items()
        if generation != "codegeex2-6b"  # not this vocabulary's: SOURCES.md of the fixtures
        for case in found
    ],
)
def test_texts_of_another_implementation(family: str, case: dict[str, Any]) -> None:
    tokenizer = load(family)
    special = tokenizer.special_tokens
    ids = tokenizer.encode(case["text"])
    if family == "chatglm":
        assert [*ids, special["[gMASK]"], special["<sop>"]] == case["ids"]
    else:
        assert [special["[gMASK]"], special["sop"], *ids] == case["ids"]


@pytest.mark.parametrize("case", shared_cases("chatglm_q.json"))
def test_texts_of_a_third_implementation(case: dict[str, Any]) -> None:
    tokenizer = load("chatglm2")
    special = tokenizer.special_tokens
    ids = tokenizer.encode(case["text"])
    if "text_pair" in case:
        pair = tokenizer.encode(case["text_pair"])
        ids = [special["[gMASK]"], special["sop"], *ids, *pair, special["</s>"]]
    assert ids == case["ids"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FOLDERS)
@pytest.mark.parametrize("unit", ["你好，世界! The fox 123.\n", "a", " ", "\n", "中", "!"])
def test_a_megabyte_takes_seconds(family: str, unit: str) -> None:
    tokenizer = load(family)
    text = unit * (1_000_000 // len(unit.encode()))
    start = time.monotonic()
    try:
        tokenizer.encode(text)
    except InvalidParameterError as error:
        assert "white spaces in a row" in str(error)  # noqa: PT017  # of one that cannot
    assert time.monotonic() - start < 60  # a hang, and no measurement
