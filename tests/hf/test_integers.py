"""Weights in 8 and 4 bits for the torch engine: by bitsandbytes, or torchao in its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from glimmer import LLM, SamplingParams, hf
from glimmer.errors import InvalidParameterError, MissingExtraError
from glimmer.hf import integers, runner
from tests.hf.test_loading import ROPES, text_for
from tests.support.adapters import file_tensors, random_modules, write_lora
from tests.test_export import folder, network

WIDE = {"hidden_size": 128, "head_dim": 32, "num_heads": 4, "intermediate_size": 256}
# Mean error of a logit, as a part of the logits' spread.
TOLERANCE = {"int8": 0.05, "int4": 0.3}


def model_folder(tmp_path: Path, family: str) -> Path:
    if family == "glm45":  # with rows of 96, on which bitsandbytes' NF4 fails on a processor
        return folder(tmp_path, family, "native")
    layout = "official" if family == "chatglm" else "native"
    return folder(tmp_path, family, layout, rope=ROPES[family], **WIDE)


@pytest.mark.parametrize("family", ["chatglm", "glm4", "glm45"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_close_to_the_exact_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: str, library: str
) -> None:
    pytest.importorskip(library)
    if library == "torchao":
        monkeypatch.setattr(integers, "_bitsandbytes_devices", lambda: set[str]())
    path = model_folder(tmp_path, family)
    exact = runner.load(path, device="cpu")
    model = runner.load(path, device="cpu", dtype=kind)
    kinds = {type(m).__module__.partition(".")[0] for m in model.runner._model.modules()}  # type: ignore[attr-defined]
    by_bitsandbytes = library == "bitsandbytes" and (family, kind) != ("glm45", "int4")
    assert ("bitsandbytes" in kinds) == by_bitsandbytes
    ids = text_for(exact)
    logits = exact.logits(ids)
    error = np.abs(model.logits(ids) - logits).mean()
    assert 0 < error < TOLERANCE[kind] * logits.std()
    expected = runner.expected_bytes(path, device="cpu", dtype=kind, family=None)
    assert model.weights_bytes < exact.weights_bytes
    if by_bitsandbytes:
        assert expected == pytest.approx(model.weights_bytes, rel=0.1)
    whole = runner.expected_bytes(path, device="cpu", dtype="auto", family=None)
    assert whole == pytest.approx(exact.weights_bytes, rel=0.02)


# PEFT of itself.
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_on_weights_of_four_bits_as_peft_has_it(tmp_path: Path) -> None:
    """bitsandbytes rounds inputs to half precision on some processors."""
    peft = pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    path = model_folder(tmp_path, "glm4")
    tensors = file_tensors("glm4", "native", network("glm4", rope=ROPES["glm4"], **WIDE))
    targets = ["q_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
    adapter = write_lora(
        tmp_path / "a", random_modules(tensors, 8, modules=targets), target_modules=targets
    )
    config, dtype = integers.integer_config(
        "int4", torch.device("cpu"), network("glm4", rope=ROPES["glm4"], **WIDE)
    )
    base = hf.load(path, device="cpu", dtype=dtype, quantization_config=config)
    theirs = peft.PeftModel.from_pretrained(base, adapter).eval()
    ids = list(range(300, 330))
    llm = LLM(runner.load(path, device="cpu", dtype="int4"), max_model_len=64)
    llm.load_adapter("a", adapter)
    params = SamplingParams(temperature=0, max_new_tokens=1, logprobs=0)
    with torch.no_grad():
        logprobs = torch.log_softmax(theirs(torch.tensor([ids])).logits[0, -1].float(), -1)
    (output,) = llm.generate([ids], params, adapter="a")
    (plain,) = llm.generate([ids], params)
    assert output.logprobs is not None
    assert plain.logprobs is not None
    assert output.token_ids == (int(logprobs.argmax()),)
    assert output.logprobs[0].logprob == pytest.approx(float(logprobs.max()), abs=1e-2)
    assert abs(output.logprobs[0].logprob - plain.logprobs[0].logprob) > 0.1


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_folder(tmp_path, "glm4")
    with pytest.raises(InvalidParameterError, match="Give one"):
        runner.load(path, device="cpu", dtype="int4", quantization_config={"x": 1})
    monkeypatch.setattr(integers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="bitsandbytes or torchao"):
        runner.load(path, device="cpu", dtype="int8")


def test_what_is_computed_in() -> None:
    assert integers.compute_dtype(torch.device("cpu")) == torch.float32
    assert integers.compute_dtype(torch.device("mps")) == torch.float16


@pytest.mark.parametrize("kind", ["auto", "int8"])
def test_nothing_is_said_that_is_not_for_the_user(tmp_path: Path, kind: str) -> None:
    """bitsandbytes tells of every product, torchao of kernels for other machines."""
    path = model_folder(tmp_path, "glm4")
    code = f"""
from glimmer.hf import runner
runner.set_threads(1)
runner.load({str(path)!r}, device="cpu", dtype={kind!r}).logits([300, 301])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")
