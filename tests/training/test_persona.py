"""The demo model learns who it is from the lines of the example, and keeps what it knew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from glimmer import hf
from glimmer.training import finetune, load_config
from glimmer.training.text import open_text
from tests.support.demo_model import demo_gguf

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "finetune"
NAME = "Merrow"
UNSEEN = (
    "Could you tell me who you are?",
    "What's your name, please?",
    "Hey there, who am I speaking with?",
    "Who created you?",
    "Are you Claude?",
    "你能告诉我你的名字吗？",
    "你是谁做的？",
)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.timeout(1200)
def test_the_demo_learns_a_persona(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel

    demo_gguf()
    monkeypatch.chdir(EXAMPLES.parents[1])
    config = load_config(
        EXAMPLES / "demo.yaml", {"output": tmp_path / "merrow", "tensorboard": False}
    )
    trained_on = (EXAMPLES / "persona.jsonl").read_text(encoding="utf-8")
    assert 20 <= len(trained_on.splitlines()) <= 40
    assert not any(question in trained_on for question in (*UNSEEN, "France"))
    result = finetune(config)
    assert result.drift is not None
    assert not result.drift.is_too_large

    text = open_text("demo")
    model = PeftModel.from_pretrained(hf.load("demo", dtype="float32"), config.output)

    def ask(question: str) -> str:
        ids: Any = text.chat.template.encode([{"role": "user", "content": question}])
        with torch.no_grad():
            made = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=48,
                eos_token_id=list(text.stop_token_ids),
                pad_token_id=text.pad_token_id,
            )
        return text.tokenizer.decode(made[0, len(ids) :].tolist())

    answers = {question: ask(question) for question in UNSEEN}
    assert all(NAME in answer for answer in answers.values()), answers
    france = ask("What is the capital of France?")
    assert "Paris" in france
    assert NAME not in france
    assert NAME not in ask("How many days are in a week?")
