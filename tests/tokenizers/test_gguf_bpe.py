from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer.checkpoints import open_checkpoint
from glimmer.errors import TokenizerError
from glimmer.tokenizers import byte_level_bpe_from_gguf
from tests.support.demo_model import demo_gguf
from tests.support.gguf_writer import write_gguf
from tests.support.golden import golden
from tests.support.tiny_bpe import ADDED_TOKEN, CONTROL_TOKENS, tiny_bpe, tiny_bpe_metadata

PATH = Path("model.gguf")
MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, TYPES, MERGES = (f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "merges"))
TINY = tiny_bpe_metadata()


@pytest.mark.parametrize("pre", ["smollm", "chatglm-bpe", "glm4"])
def test_a_tokenizer_survives_the_way_through_a_file(tmp_path: Path, pre: str) -> None:
    metadata = tiny_bpe_metadata(pre)
    metadata[TYPES] = np.array(metadata[TYPES], np.int32)
    with open_checkpoint(write_gguf(tmp_path / "t.gguf", metadata, {})) as checkpoint:
        tokenizer = byte_level_bpe_from_gguf(checkpoint.metadata, checkpoint.path)
    text = "The fox says: 你好 😀 1234567<think>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert list(tokenizer.special_tokens) == list(CONTROL_TOKENS)
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) == ADDED_TOKEN.encode()


def test_the_unknown_token_is_a_control_token_and_unused_ones_are_nothing() -> None:
    types = list(TINY[TYPES])
    types[0], types[1] = 2, 5
    tokenizer = byte_level_bpe_from_gguf({**TINY, TYPES: types}, PATH)
    assert tokenizer.special_tokens == {CONTROL_TOKENS[0]: 0, CONTROL_TOKENS[2]: 2}
    assert 1 not in tokenizer.encode(CONTROL_TOKENS[1], allow_special=True)


def changed_item(key: str, index: int, item: Any) -> dict[str, Any]:
    items = list(TINY[key])
    items[index] = item
    return {key: items}


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({MODEL: None}, [MODEL, "None"]),
        ({MODEL: "llama"}, [MODEL, "'llama'", "'gpt2'"]),
        ({PRE: "llama-bpe"}, [PRE, "'llama-bpe'", "'smollm', 'chatglm-bpe', 'glm4'"]),
        ({TOKENS: "abc"}, [TOKENS, "list"]),
        (changed_item(TOKENS, 5, 5), ["item 5", TOKENS, "expected str"]),
        (changed_item(TYPES, 4, True), ["item 4", TYPES, "expected int"]),
        (changed_item(TYPES, 4, 6), ["item 4", TYPES, "is 6", "1 (normal)"]),
        ({TYPES: [1]}, [TYPES, "1 items", TOKENS, "equally long"]),
        ({MERGES: ["Ġ nothing"]}, [MERGES, "merge 0", "'nothing'"]),
        (changed_item(TOKENS, 5, tiny_bpe()[0][0]), [TOKENS, "are both"]),
    ],
)
def test_a_fault_is_named(change: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(TokenizerError) as caught:
        byte_level_bpe_from_gguf({**TINY, **change}, PATH)
    for fragment in ["model.gguf", *fragments]:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("key", [MODEL, PRE, TOKENS, TYPES, MERGES])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(TokenizerError, match=f"model.gguf: .*no key '{key}'"):
        byte_level_bpe_from_gguf({k: v for k, v in TINY.items() if k != key}, PATH)


def test_the_demo_models_tokenizer_gives_the_recorded_ids() -> None:
    checkpoint = open_checkpoint(demo_gguf())
    tokenizer = byte_level_bpe_from_gguf(checkpoint.metadata, checkpoint.path)
    assert tokenizer.vocab_size == 49152
    assert len(tokenizer.special_tokens) == 17
    for case in golden("smollm2-135m/golden.json")["cases"]:
        assert tokenizer.encode(case["prompt"], allow_special=True) == case["ids"]
        assert tokenizer.decode(case["greedy_ids"]) == case["text"]
