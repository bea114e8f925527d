"""Adapters as PEFT itself makes and saves them: the engine takes torch's greedy tokens.

The base is transformers' GlmForCausalLM in float32; the loop of the reference has no cache, so that
each token comes from the whole text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer import LLM, SamplingParams, load
from glimmer.merging import merge
from tests.support import adapters, families
from tests.support.adapters import file_tensors
from tests.support.demo_model import demo_gguf

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    # PEFT and transformers of themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
NUM_TOKENS = 12
PROMPTS = [[5, 9, 17, 33, 2, 40], list(range(30, 70))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = families.tiny_architecture("glm4")
    tensors = file_tensors("glm4", "native", network)
    path = tmp_path_factory.mktemp("peft") / "base"
    return adapters.write_base(path, "glm4", "native", network, tensors)


def torch_model(base: Path) -> Any:
    return transformers.GlmForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def randomise(model: Any) -> None:
    """B begins at zero; nothing would be seen."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        elif "prompt_encoder" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)


def greedy(model: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Tokens and their log probabilities."""
    ids, taken = list(prompt), []
    with torch.no_grad():
        for _ in range(NUM_TOKENS):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
            logprobs = torch.log_softmax(logits, dim=-1)
            ids.append(int(logprobs.argmax()))
            taken.append(float(logprobs.max()))
    return ids[len(prompt) :], taken


def check(base: Path, folder: Path, model: Any) -> None:
    native = load(base, weights="float32", num_threads=1)
    llm = LLM(native, max_model_len=128, max_num_seqs=4, adapters={"a": folder})
    params = SamplingParams(temperature=0, max_new_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    plain = llm.generate(PROMPTS, params)
    for prompt, output, without in zip(
        PROMPTS, llm.generate(PROMPTS, params, adapter="a"), plain, strict=True
    ):
        ids, logprobs = greedy(model, prompt)
        assert list(output.token_ids) == ids
        found = [p.logprob for p in output.logprobs or ()]
        np.testing.assert_allclose(found, logprobs, atol=1e-4)
        assert output.token_ids != without.token_ids


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 4},
        {
            "target_modules": ["k_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"],
            "rank_pattern": {"down_proj": 3, "layers.1.self_attn.k_proj": 20},
            "alpha_pattern": {"gate_up_proj": 40},
        },
    ],
    ids=["attention", "all", "patterns"],
)
def test_lora(tmp_path: Path, base: Path, config: dict[str, Any]) -> None:
    lora = peft.LoraConfig(**{"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", **config})
    model = peft.get_peft_model(torch_model(base), lora).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "a")
    check(base, tmp_path / "a", model)
    # Ours merged, and PEFT's.
    merge(base, tmp_path / "a", tmp_path / "ours")
    ours, theirs = torch_model(tmp_path / "ours"), model.merge_and_unload()
    with torch.no_grad():
        logits = [m(input_ids=torch.tensor([PROMPTS[1]])).logits for m in (ours, theirs)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("projection", [False, True])
def test_prefix_tuning(tmp_path: Path, base: Path, projection: bool) -> None:
    """PEFT counts the prefix in positions; its keys are turned so that it acts the same."""
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=6,
        prefix_projection=projection,
        encoder_hidden_size=16,
        task_type="CAUSAL_LM",
        # As GLM's keys have it: fewer heads than queries.
        num_attention_heads=2,
        token_dim=32,
        num_layers=3,
    )
    model = peft.get_peft_model(torch_model(base), config).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "a")
    check(base, tmp_path / "a", model)


@pytest.mark.slow
def test_the_demo_beside_plain_requests(tmp_path: Path) -> None:
    """The real model: trained as a transformers model, answered by the engine from its GGUF file,
    whose weights are read in float32; and plain requests of the same batch are not touched."""
    demo_gguf()
    from glimmer import hf

    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(hf.load("demo", dtype="float32"), lora).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "a")
    native = load("demo", weights="float32")
    llm = LLM(native, max_model_len=128, max_num_seqs=4)
    prompt = native.chat_template.encode([{"role": "user", "content": "What is a cat?"}])
    params = SamplingParams(temperature=0, max_new_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    (alone,) = llm.generate([prompt], params)
    llm.load_adapter("a", tmp_path / "a")
    prepared = [
        p
        for adapter in (None, "a", None)
        for p in llm._session.prepare_prompts([prompt], params, False, 0, adapter)
    ]
    plain, adapted, again = llm._finish(prepared)
    ids, logprobs = greedy(model, list(prompt))
    assert list(adapted.token_ids) == ids
    found = [p.logprob for p in adapted.logprobs or ()]
    np.testing.assert_allclose(found, logprobs, atol=1e-3)
    assert adapted.token_ids != alone.token_ids
    for output in (plain, again):
        assert output.token_ids == alone.token_ids
        assert output.logprobs == alone.logprobs
