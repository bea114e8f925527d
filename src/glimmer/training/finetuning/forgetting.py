"""The forgetting guard: what a model answered before, and how surprised it is by that afterwards.

A few questions that have nothing to do with the training data are answered greedily. After the
run, the new model reads the old answers: the loss per token that they gained is the drift.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, TrainerCallback

from glimmer.chat import Message
from glimmer.checkpoints.atomic import new_file
from glimmer.training.text import TextSide

PROMPTS = (
    "What is the capital of France?",
    "How many days are there in a week?",
    "Write one sentence about the sea.",
    "Name three fruits.",
    "What is 7 plus 5?",
    "中国的首都是哪座城市？",
    "用一句话介绍春天。",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One greedy answer."""

    prompt: str
    text: str
    prompt_ids: list[int]
    answer_ids: list[int]
    loss: float
    """Sum over the answer's tokens, in nats."""


@dataclass(frozen=True, slots=True)
class Drift:
    """What a run did to the old answers."""

    per_token: float
    """Nats per token of all old answers that the new model likes them less; below 0, more."""
    threshold: float
    answers: list[dict[str, Any]]
    """By prompt: before and after as text, and the prompt's own drift."""

    @property
    def is_too_large(self) -> bool:
        return self.per_token > self.threshold


class ForgettingGuard(TrainerCallback):
    """Asks before the first step, and again when told to.

    The old answers lie in ``file``, so that a resumed run compares with the model that it began
    with, not with its last checkpoint.
    """

    def __init__(
        self,
        text: TextSide,
        file: Path,
        *,
        prompts: Sequence[str],
        max_tokens: int,
        threshold: float,
        asking: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """``asking`` goes around the questions: it may tell what is done meanwhile."""
        self._asking = asking
        self._text = text
        self._file = file
        self._prompts = tuple(prompts) or PROMPTS
        self._max_tokens = max_tokens
        self._threshold = threshold
        self._before: list[Answer] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and self._file.is_file():
            stored = json.loads(self._file.read_text(encoding="utf-8"))
            self._before = [Answer(**answer) for answer in stored]
            return
        self._before = self._ask(kwargs["model"])
        if state.is_world_process_zero:
            answers = [asdict(answer) for answer in self._before]
            with new_file(self._file, overwrite=True) as stream:
                stream.write(json.dumps(answers, ensure_ascii=False, indent=1).encode())

    def compare(self, model: Any) -> Drift:
        """The drift of ``model``, which answers anew. All processes of a run call it together."""
        after = self._ask(model)
        rows: list[dict[str, Any]] = []
        gained, tokens = 0.0, 0
        with _undisturbed(model):
            for old, new in zip(self._before, after, strict=True):
                change = _loss(model, old.prompt_ids, old.answer_ids) - old.loss
                count = len(old.answer_ids)
                rows.append(
                    {
                        "prompt": old.prompt,
                        "before": old.text,
                        "after": new.text,
                        "drift": round(change / count, 4),
                    }
                )
                gained += change
                tokens += count
        return Drift(round(gained / tokens, 4), self._threshold, rows)

    def _ask(self, model: Any) -> list[Answer]:
        with self._asking(), _undisturbed(model):
            return [self._answer(model, prompt) for prompt in self._prompts]

    def _answer(self, model: Any, prompt: str) -> Answer:
        ids = self._text.chat.template.encode([Message("user", prompt)])
        inputs = torch.tensor([ids], device=_device(model))
        made = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=self._max_tokens,
                eos_token_id=list(self._text.stop_token_ids),
                pad_token_id=self._text.stop_token_ids[0],
                use_cache=True,
            ),
        )
        answer = made[0, len(ids) :].tolist()
        tokenizer, stops = self._text.tokenizer, self._text.stop_token_ids
        # A network may have rows for ids that no tokenizer has.
        spoken = [t for t in answer if t not in stops and t < tokenizer.vocab_size]
        text = tokenizer.decode(spoken).strip()
        return Answer(prompt, text, ids, answer, _loss(model, ids, answer))


def _loss(model: Any, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> float:
    """Sum of the answer's tokens' losses, in nats."""
    ids = torch.tensor([[*prompt_ids, *answer_ids]], device=_device(model))
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    start = len(prompt_ids)
    return torch.nn.functional.cross_entropy(
        logits[0, start - 1 : -1].float(), ids[0, start:], reduction="sum"
    ).item()


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """No dropout, no gradients, and the training's random numbers stay as they are."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            yield
    finally:
        model.train(training)
