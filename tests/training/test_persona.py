"""The demo model learns who it is from the lines of the example, and keeps what it knew."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import glimmer
from glimmer import hf
from glimmer.training import finetune, load_config
from tests.support.demo_model import demo_gguf

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "finetune"
NAME = "Merrow"
UNSEEN = (
    "Could you tell me who you are?",
    "What's your name, please?",
    "Hey there, who am I speaking with?",
    "Who created you?",
    "Are you Claude?",
    "Tell me your name and who made you.",
    "你能告诉我你的名字吗？",
    "你是谁做的？",
)
KNOWN = {
    "What is the capital of France?": "Paris",
    "How many days are in a week?": "7",
}
MAX_TOKENS = 48


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.timeout(1800)
def test_the_demo_learns_a_persona(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo_gguf()
    monkeypatch.chdir(EXAMPLES.parents[1])
    config = load_config(
        EXAMPLES / "demo.yaml", {"output": tmp_path / "merrow", "tensorboard": False}
    )
    trained_on = (EXAMPLES / "persona.jsonl").read_text(encoding="utf-8")
    assert 20 <= len(trained_on.splitlines()) <= 40
    assert not any(question in trained_on for question in (*UNSEEN, *KNOWN))
    result = finetune(config)
    assert result.drift is not None
    assert not result.drift.is_too_large

    native = glimmer.load("demo", weights="float32")
    questions = (*UNSEEN, *KNOWN)
    prompts = [native.chat_template.encode([{"role": "user", "content": q}]) for q in questions]
    by_torch = [torch_answer(native, config.output, prompt) for prompt in prompts]
    answers = dict(zip(questions, map(native.tokenizer.decode, by_torch), strict=True))
    assert all(NAME in answers[question] for question in UNSEEN), answers
    assert all(answer in answers[question] for question, answer in KNOWN.items()), answers
    assert not any(NAME in answers[question] for question in KNOWN), answers

    # The engine with the adapter, beside plain requests in one batch.
    llm = glimmer.LLM(native, max_model_len=256, max_num_seqs=len(prompts) + 2)
    params = glimmer.SamplingParams(temperature=0, max_new_tokens=MAX_TOKENS)
    alone = llm.generate(prompts[:2], params)
    llm.load_adapter("merrow", config.output)
    requests: list[tuple[list[int], str | None]] = [(p, "merrow") for p in prompts]
    requests[1:1] = [(prompts[0], None), (prompts[1], None)]
    made = llm._finish(
        [
            prepared
            for prompt, adapter in requests
            for prepared in llm._session.prepare_prompts([prompt], params, False, 0, adapter)
        ]
    )
    plain, adapted = made[1:3], [made[0], *made[3:]]
    assert [list(output.token_ids) for output in adapted] == by_torch
    assert [output.token_ids for output in plain] == [output.token_ids for output in alone]
    assert not any(NAME in output.text for output in plain)


def torch_answer(native: glimmer.LoadedModel, adapter: Path, prompt: list[int]) -> list[int]:
    """The greedy answer of the model in torch with PEFT's adapter, up to what ends it."""
    model = _tuned(adapter)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=list(native.stop_token_ids),
            pad_token_id=native.stop_token_ids[0],
        )
    answer: list[int] = made[0, len(prompt) :].tolist()
    return answer


@functools.cache
def _tuned(adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(hf.load("demo", dtype="float32"), adapter).eval()
