"""What is written opens in others' hands: transformers and llama.cpp, with the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer import LLM, SamplingParams, export, load
from tests.support import tiny_tokenizers
from tests.support.tiny_gguf import tiny_gguf
from tests.test_export import CHATS, LAYOUTS, folder

pytestmark = pytest.mark.slow
TEXTS = [*tiny_tokenizers.TEXT, "  two  spaces\n\n\ttab", "Ünïcödé 😀 مرحبا", "12345 3.14", " x"]
NATIVE = [(family, layout) for family, layout in LAYOUTS if family != "chatglm"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("family", "layout"), NATIVE)
def test_transformers_runs_the_folder_without_remote_code(
    tmp_path: Path, family: str, layout: str
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = folder(tmp_path, family, layout)
    export.convert(source, tmp_path / "hf", "hf", family=family)
    ours = load(source, weights="float32", family=family)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, trust_remote_code=False
    )
    ids = np.random.default_rng(0).integers(0, ours.architecture.vocab_size, 60)
    with torch.no_grad():
        logits = theirs(torch.tensor(ids[None])).logits[0].numpy()
    np.testing.assert_allclose(ours.logits(ids.tolist()), logits, atol=1e-4, rtol=0)

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
        tmp_path / "hf", trust_remote_code=False
    )
    for text in TEXTS:
        expected = ours.tokenizer.encode(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
        assert tokenizer.decode(expected, skip_special_tokens=True) == text
    for chat in CHATS:
        made = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        assert made["input_ids"] == ours.chat_template.encode(chat)


@pytest.mark.filterwarnings("default")
def test_transformers_runs_the_demo_family(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = tiny_gguf(tmp_path / "m.gguf", dtype="float32")
    export.convert(source, tmp_path / "hf", "hf", dtype="float32")
    ours = load(source, weights="float32")
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ids = np.random.default_rng(0).integers(0, ours.architecture.vocab_size, 60)
    with torch.no_grad():
        logits = theirs(torch.tensor(ids[None])).logits[0].numpy()
    np.testing.assert_allclose(ours.logits(ids.tolist()), logits, atol=1e-4, rtol=0)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in TEXTS:
        expected = ours.tokenizer.encode(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
        assert tokenizer.decode(expected) == text
    for chat in CHATS:
        made = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        assert made["input_ids"] == ours.chat_template.encode(chat)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("family", "layout"), NATIVE)
@pytest.mark.parametrize("to", ["bfloat16", "q8_0", "q4_0"])
def test_llama_cpp_answers_with_the_same_ids(
    tmp_path: Path, family: str, layout: str, to: Any
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    choices: dict[str, Any] = {"hidden_size": 64, "num_heads": 4, "head_dim": 16}
    source = folder(tmp_path, family, layout, **choices)
    path = tmp_path / "m.gguf"
    if to == "bfloat16":
        export.convert(source, path, "gguf", family=family)
    else:
        export.quantize_model(source, path, to, family=family)
    theirs = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, verbose=False, logits_all=True,
                             type_k=0, type_v=0)  # fmt: skip
    ours = load(path, num_threads=1)
    for text in TEXTS:
        tokens = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert tokens == ours.tokenizer.encode(text)
    prompt = ours.chat_template.encode(CHATS[1])
    params = SamplingParams(temperature=0, max_new_tokens=24, ignore_eos=True)
    llm = LLM(ours, max_model_len=256, kv_cache="float32")
    (answer,) = llm.generate([prompt], params)
    theirs.eval(prompt)
    found = []
    for _ in range(24):
        logits = np.array(theirs.scores[theirs.n_tokens - 1])
        found.append(int(logits.argmax()))
        theirs.eval([found[-1]])
    if to == "bfloat16":
        assert found == list(answer.token_ids)
    # Their inputs are rounded to int8, so that close calls may fall otherwise.
    error = np.abs(np.array(theirs.scores[: len(prompt)]) - ours.logits(prompt))
    assert error.mean() < (0.02 if to == "bfloat16" else 0.2)
