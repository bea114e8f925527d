"""Every fixture of the official code through the bridge: logits, batches, masks, prefixes, greedy
ids."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from glimmer import hf
from tests.support import golden
from tests.test_golden import GREEDY_STEPS, NAMES, results, sequences, tolerance


@cache
def model(name: str) -> Any:
    made = hf.load(golden.folder(name), dtype="float32")
    made.generation_config.eos_token_id = None  # the fixtures go on behind it
    made.generation_config.pad_token_id = 0
    return made


def inputs(name: str) -> dict[str, torch.Tensor]:
    """The fixture's batch; padding as [batch, tokens], 1 where a token is."""
    ids = torch.tensor(results(name)["input_ids"])
    mask = torch.ones_like(ids)
    for row, (padding, _) in enumerate(sequences(name)):
        mask[row, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_a_batch(name: str) -> None:
    logits = model(name)(**inputs(name)).logits.numpy()
    for row, (padding, _) in enumerate(sequences(name)):
        expected = results(name)["logits"][row, padding:]
        np.testing.assert_allclose(logits[row, padding:], expected, atol=tolerance(name), rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm-6b-batch", "chatglm-6b-mask"])
def test_positions_and_masks_as_they_are_given(name: str) -> None:
    """Official masks say what is masked; ours what is seen."""
    recorded = results(name)
    logits = model(name)(
        input_ids=torch.tensor(recorded["input_ids"]),
        position_ids=torch.tensor(recorded["position_ids"]),
        attention_mask=~torch.tensor(recorded["attention_mask"]),
    ).logits.numpy()
    for row, (padding, _) in enumerate(sequences(name)):
        expected = recorded["logits"][row, padding:]
        np.testing.assert_allclose(logits[row, padding:], expected, atol=tolerance(name), rtol=0)


@pytest.mark.parametrize(
    ("name", "use_cache"),
    [
        *((name, True) for name in NAMES),
        *((name, False) for name in ("chatglm-6b-batch", "chatglm-6b-ptuning-proj", "glm-4.5")),
    ],
)
def test_greedy_ids(name: str, use_cache: bool) -> None:
    ids = model(name).generate(
        **inputs(name), max_new_tokens=GREEDY_STEPS, do_sample=False, use_cache=use_cache
    )
    expected = results(name)["greedy_ids"][:, -GREEDY_STEPS:]
    np.testing.assert_array_equal(ids[:, -GREEDY_STEPS:].numpy(), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["chatglm-6b-batch", "chatglm-6b"])
def test_eager_attention_is_sdpa(name: str) -> None:
    eager = hf.load(golden.folder(name), dtype="float32", attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    output = eager(**inputs(name), output_attentions=True, output_hidden_states=True)
    for row, (padding, _) in enumerate(sequences(name)):
        expected = results(name)["logits"][row, padding:]
        logits = output.logits[row, padding:].numpy()
        np.testing.assert_allclose(logits, expected, atol=tolerance(name), rtol=0)
    assert len(output.attentions) == eager.config.num_layers
    np.testing.assert_allclose(output.attentions[0].sum(-1).numpy(), 1, atol=1e-5)
    for i in range(eager.config.num_layers):
        for row, (padding, _) in enumerate(sequences(name)):
            np.testing.assert_allclose(
                output.hidden_states[i][row, padding:].numpy(),
                results(name)[f"hidden.{i}"][row, padding:],
                atol=1e-3,
                rtol=1e-4,
            )
