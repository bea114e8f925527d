"""Batches: a text gives the same logits alone, padded and packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glimmer import hf
from glimmer.training.data import IGNORED
from glimmer.training.finetuning.collate import PackingCollator, PaddingCollator, PairCollator
from glimmer.training.text import open_text
from tests.support import tuning

FAMILIES = ("glm4", "glm45", "chatglm")
QUESTIONS = ("who are you", "the lazy dog jumps over the fox", "你好")


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tuning.tiny_model(tmp_path_factory.mktemp("model") / "m", request.param)
    return open_text(path), hf.load(path, dtype="float32")


def rows_of(text: Any) -> list[dict[str, list[int]]]:
    ids = [text.chat.template.encode([{"role": "user", "content": q}]) for q in QUESTIONS]
    return [{"input_ids": row, "labels": [IGNORED, *row[1:]]} for row in ids]


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(
            **{k: v for k, v in batch.items() if k != "labels"}, use_cache=False
        ).logits
    return result


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(made: Any, side: Any) -> None:
    text, model = made
    rows = rows_of(text)
    batch = PaddingCollator(text.pad_token_id, side)(rows)
    together = logits(model, batch)
    for row, values, labels in zip(rows, together, batch["labels"], strict=True):
        alone = logits(model, {"input_ids": torch.tensor([row["input_ids"]])})[0]
        part = slice(-len(alone), None) if side == "left" else slice(0, len(alone))
        torch.testing.assert_close(values[part], alone, atol=1e-4, rtol=1e-4)
        assert labels[part].tolist() == row["labels"]


def test_packing_changes_no_logits(made: Any) -> None:
    text, model = made
    rows = rows_of(text)
    packs = [{"parts": rows}, {"parts": rows[1:]}]
    batch = PackingCollator(text.pad_token_id, text.architecture)(packs)
    together = logits(model, batch)
    for pack, values, labels in zip(packs, together, batch["labels"], strict=True):
        start = 0
        for row in pack["parts"]:
            alone = logits(model, {"input_ids": torch.tensor([row["input_ids"]])})[0]
            part = slice(start, start + len(alone))
            torch.testing.assert_close(values[part], alone, atol=1e-4, rtol=1e-4)
            assert labels[part].tolist() == row["labels"]
            start += len(alone)
        assert (labels[start:] == IGNORED).all()


def test_a_pack_s_first_tokens_are_not_predicted() -> None:
    class Causal:
        blanks = None

    parts = [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [7]}]
    batch = PackingCollator(0, Causal())([{"parts": parts}])  # type: ignore[arg-type]
    assert batch["labels"].tolist() == [[IGNORED, 6, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 0]]


def test_pairs_are_as_trl_wants_them() -> None:
    rows = [
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
        {"prompt_ids": [7, 8], "chosen_ids": [9], "rejected_ids": [10, 11]},
    ]
    ours = PairCollator(PaddingCollator(0, "right"))(rows)
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    theirs = DataCollatorForPreference(pad_token_id=0)(rows)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
