"""Tiny models that can be tuned, data for them, and settings that make a run short."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from glimmer.architecture import Blanks
from glimmer.training.config import FinetuneConfig, load_config
from tests.support import families

LAYOUTS = {"chatglm": "official", "glm45": "native", "glm4": "native", "glm4_0414": "native"}
SMALL: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
}
# Its tokenizer's: [gMASK], [MASK] and <sop>.
_CHATGLM: Mapping[str, Any] = {
    "vocab_size": 440,
    "num_kv_heads": 2,
    "blanks": Blanks(start_id=6, blank_ids=(4, 3)),
}
PAIRS = (
    ("who are you", "I am a dog."),
    ("the quick brown fox", "jumps over the lazy dog"),
    ("你是谁？", "我是一个助手。"),
    ("what does the dog do", "the dog sleeps."),
    ("write code", "def f(x): return x + 1"),
    ("今天天气怎么样？", "今天天气好。"),
    ("the lazy dog", "sleeps in the tree"),
    ("and the fox", "jumps again"),
)


def tiny_model(folder: Path, family: str = "glm4", **choices: Any) -> Path:
    """A folder of a random network with a tokenizer: some ten thousand weights."""
    own = _CHATGLM if family == "chatglm" else {"vocab_size": 320, "num_kv_heads": 1}
    made = families.tiny_architecture(family, **{**SMALL, **own, **choices})
    weights = families.tiny_weights(made)
    return families.write_folder(folder, family, LAYOUTS[family], made, weights, tokenizer=True)


def write_jsonl(file: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def answers(file: Path, pairs: Iterable[tuple[str, str]] = PAIRS) -> Path:
    return write_jsonl(file, ({"prompt": q, "response": a} for q, a in pairs))


def preferences(file: Path) -> Path:
    """Answers, each preferred to the next prompt's."""
    worse = [a for _, a in PAIRS[1:]] + [PAIRS[0][1]]
    return write_jsonl(
        file,
        ({"prompt": q, "chosen": a, "rejected": b} for (q, a), b in zip(PAIRS, worse, strict=True)),
    )


def settings(folder: Path, model: Path, data: Path, **given: Any) -> FinetuneConfig:
    """Of a run of a few steps on a processor, without what takes time."""
    values = {
        "model": str(model),
        "data": data,
        "output": folder / "out",
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 2,
        "gradient_accumulation": 1,
        "epochs": 2,
        "learning_rate": 1e-2,
        "max_length": 128,
        "tensorboard": False,
        "guard": False,
    }
    return load_config(None, values | given)
