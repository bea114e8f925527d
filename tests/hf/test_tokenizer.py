"""Tokenizers of every family behind transformers' interface: the ids are the engine's."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import glimmer
from glimmer import export, hf
from glimmer.checkpoints import ConfigCheckpoint
from glimmer.errors import InvalidParameterError, TokenizerError
from glimmer.families import all_families
from glimmer.hf.tokenizer import GlimmerTokenizer
from tests.support import golden
from tests.support.tiny_gguf import tiny_gguf
from tests.test_export import CHATS, LAYOUTS, folder

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
TEXTS = ["你好，世界", "Hello\n\tthe  fox", "", " x", "<sop>[MASK]<|user|> a"]


def source(tmp_path: Path, family: str, layout: str) -> Path:
    if family == "smollm":
        return tiny_gguf(tmp_path / "m.gguf")
    return folder(tmp_path, family, layout)


ALL = [*LAYOUTS, ("smollm", "gguf")]


@pytest.mark.parametrize(("family", "layout"), ALL)
def test_ids_are_the_engines(tmp_path: Path, family: str, layout: str) -> None:
    path = source(tmp_path, family, layout)
    ours = glimmer.load(path, family=family)
    theirs = hf.load_tokenizer(path, family)
    assert theirs.vocab_size == len(theirs) == ours.tokenizer.vocab_size
    frame = all_families()[family].text_frame(ours.tokenizer)
    for text in TEXTS:
        bare = ours.tokenizer.encode(text, allow_special=True)
        assert theirs(text, add_special_tokens=False)["input_ids"] == bare
        assert theirs(text)["input_ids"] == [*frame.before, *bare, *frame.behind]
        assert theirs.encode(text, add_special_tokens=False) == bare
        safe = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert safe == ours.tokenizer.encode(text)
        assert theirs.convert_tokens_to_ids(theirs.tokenize(text)) == bare
        assert theirs.decode(bare, skip_special_tokens=True) == ours.tokenizer.decode(
            i for i in bare if i not in ours.tokenizer.special_tokens.values()
        )
    for chat in CHATS:
        for start in (False, True):
            made = theirs.apply_chat_template(chat, add_generation_prompt=start)
            assert made["input_ids"] == ours.chat_template.encode(chat, add_generation_prompt=start)
    assert theirs.eos_token_id == ours.stop_token_ids[0]
    assert theirs.pad_token_id == frame.padding


@pytest.mark.parametrize(("family", "layout"), [f for f in LAYOUTS if f[0] != "smollm"])
def test_tools_and_batches(tmp_path: Path, family: str, layout: str) -> None:
    path = source(tmp_path, family, layout)
    ours = glimmer.load(path, family=family)
    theirs = hf.load_tokenizer(path, family)
    expected = ours.chat_template.encode(CHATS[0], TOOLS)
    assert (
        theirs.apply_chat_template(CHATS[0], tools=TOOLS, add_generation_prompt=True)["input_ids"]
        == expected
    )
    both = theirs.apply_chat_template(CHATS, padding=True, return_tensors="pt")
    width = both["input_ids"].shape[1]
    for row, chat in enumerate(CHATS):
        ids = ours.chat_template.encode(chat, add_generation_prompt=False)
        assert both["input_ids"][row].tolist() == [
            *[theirs.pad_token_id] * (width - len(ids)),
            *ids,
        ]
        assert both["attention_mask"][row].tolist() == [0] * (width - len(ids)) + [1] * len(ids)
    texts = theirs.apply_chat_template(CHATS, tokenize=False)
    assert len(texts) == 2
    assert "世界" in texts[0]


@pytest.mark.parametrize(("family", "layout"), ALL)
def test_saved_and_read_again(tmp_path: Path, family: str, layout: str) -> None:
    tokenizer = hf.load_tokenizer(source(tmp_path, family, layout), family)
    tokenizer.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert "auto_map" not in config
    for again in (
        hf.load_tokenizer(tmp_path / "saved"),
        GlimmerTokenizer.from_pretrained(tmp_path / "saved"),
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
    ):
        assert type(again) is GlimmerTokenizer
        for text in TEXTS:
            assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert (
            again.apply_chat_template(CHATS[1])["input_ids"]
            == tokenizer.apply_chat_template(CHATS[1])["input_ids"]
        )
        assert again.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3", "smollm"])
def test_beside_a_model_it_is_read_by_the_engine(tmp_path: Path, family: str) -> None:
    """And tells the generation, which transformers' config does not keep."""
    path = tmp_path / "m.gguf"
    if family == "smollm":
        tiny_gguf(path)
    else:
        export.convert(folder(tmp_path, family, "official"), path, "gguf", family=family)
    saved = tmp_path / "saved"
    hf.load(path).save_pretrained(saved)
    hf.load_tokenizer(path).save_pretrained(saved)
    model = glimmer.load(saved)
    assert model.family == family
    assert model.chat_template.encode(CHATS[0]) == glimmer.load(path).chat_template.encode(CHATS[0])


def test_thinking_by_both_of_its_names(tmp_path: Path) -> None:
    path = folder(tmp_path, "glm45", "native")
    template, tokenizer = glimmer.load(path).chat_template, hf.load_tokenizer(path)
    for value in (None, True, False):
        expected = template.encode(CHATS[1], thinking=value)
        for name in ("thinking", "enable_thinking"):
            given: dict[str, Any] = {name: value}
            made = tokenizer.apply_chat_template(CHATS[1], add_generation_prompt=True, **given)
            assert made["input_ids"] == expected
    assert template.encode(CHATS[1], thinking=False) != template.encode(CHATS[1])
    # What TRL and pipelines pass along without meaning anything by it.
    made = tokenizer.apply_chat_template(
        CHATS[1], return_assistant_tokens_mask=False, continue_final_message=False, documents=None
    )
    assert made["input_ids"] == template.encode(CHATS[1], add_generation_prompt=False)


def test_functions_are_tools(tmp_path: Path) -> None:
    def weather(city: str) -> str:
        """Weather of a city

        Args:
            city: its name
        """
        return city

    tokenizer = hf.load_tokenizer(folder(tmp_path, "glm4", "native"))
    described = {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "its name"}},
            "required": ["city"],
        },
        "return": {"type": "string"},
    }
    tool = {"type": "function", "function": described}
    expected = tokenizer.apply_chat_template(CHATS[0], tools=[tool], tokenize=False)
    assert tokenizer.apply_chat_template(CHATS[0], tools=[weather], tokenize=False) == expected


def test_options_of_transformers(tmp_path: Path) -> None:
    path = folder(tmp_path, "glm4", "native")
    hub: dict[str, Any] = {"trust_remote_code": True, "use_fast": False}
    for tokenizer in (
        hf.load_tokenizer(path, padding_side="right", model_max_length=5),
        GlimmerTokenizer.from_pretrained(path, padding_side="right", model_max_length=5, **hub),
    ):
        short, long = tokenizer(["x", "你好，世界你好，世界"], padding=True, truncation=True)[
            "input_ids"
        ]
        assert len(short) == len(long) == 5
        assert short[-1] == tokenizer.pad_token_id != short[0]
        assert pickle.loads(pickle.dumps(tokenizer)).padding_side == "right"


def test_pairs(tmp_path: Path) -> None:
    tokenizer = hf.load_tokenizer(folder(tmp_path, "chatglm", "official"))
    first = tokenizer("你好", add_special_tokens=False)["input_ids"]
    second = tokenizer("世界", add_special_tokens=False)["input_ids"]
    blank, start = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    assert tokenizer("你好", "世界")["input_ids"] == [
        *first, blank, start, *second, tokenizer.eos_token_id,
    ]  # fmt: skip


def test_control_tokens_are_shown_or_left_out(tmp_path: Path) -> None:
    tokenizer = hf.load_tokenizer(folder(tmp_path, "glm4", "native"))
    ids = tokenizer.apply_chat_template(CHATS[0], add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids) == "[gMASK]<sop><|user|>\n你好，世界<|assistant|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "\n你好，世界"
    assert tokenizer.batch_decode([ids], skip_special_tokens=True) == ["\n你好，世界"]


def test_what_has_no_meaning_here_is_refused(tmp_path: Path) -> None:
    tokenizer = hf.load_tokenizer(folder(tmp_path, "glm4", "native"))
    for option in ({"chat_template": "{{ x }}"}, {"documents": [{}]}, {"speed": 3},
                   {"continue_final_message": True}, {"add_dates": False}):  # fmt: skip
        options: dict[str, Any] = dict(option)
        with pytest.raises(InvalidParameterError, match=next(iter(options))):
            tokenizer.apply_chat_template(CHATS[0], **options)
    with pytest.raises(InvalidParameterError, match="two names"):
        tokenizer.apply_chat_template(CHATS[0], thinking=True, enable_thinking=False)
    with pytest.raises(InvalidParameterError, match="push_to_hub"):
        tokenizer.save_pretrained(tmp_path / "x", push_to_hub=True)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        hf.load_tokenizer(golden.folder("chatglm3-6b"))


@pytest.mark.parametrize(
    ("family", "name"), [("chatglm", "chatglm-6b"), ("chatglm2", "chatglm2-6b")]
)
def test_padding_of_the_official_code(family: str, name: str) -> None:
    path = golden.FOLDER.parent / "tokenizers" / name
    if not path.is_dir():
        pytest.skip(f"no tokenizer at {path}")
    recorded = golden.golden(f"prompts/padding_{name}.json")[name]
    found = all_families()[family]
    tokenizer = GlimmerTokenizer(found, ConfigCheckpoint(path, {"some": "config"}))
    rows = [[i for i in row if i != tokenizer.pad_token_id] for row in recorded["input_ids"]]
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    assert padded["input_ids"].tolist() == recorded["input_ids"]
    if family == "chatglm":
        from glimmer.hf.chatglm.layout import make_mask, make_positions

        tokens = tokenizer.convert_tokens_to_ids(["<sop>", "[gMASK]", "[MASK]"])
        positions = make_positions(
            padded["input_ids"], padded["attention_mask"], tokens[0], tuple(tokens[1:])
        )
        assert positions.tolist() == recorded["position_ids"]
        seen = make_mask(positions, padded["attention_mask"], 0)
        assert seen is not None
        real = padded["attention_mask"].bool()
        official = ~torch.tensor(recorded["attention_mask"]).bool()
        for row in range(2):
            assert torch.equal(seen[row, 0][real[row]], official[row, 0][real[row]])
    else:
        assert padded["attention_mask"].tolist() == recorded["attention_mask"]
