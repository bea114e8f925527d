"""The demo model in layouts that its network fits still answers its golden texts.

GLM's networks turn half of each head: heads padded with zeros to twice their width are turned as
the demo's are, once queries make up for the larger divisor of attention (the square root of 2) and
the base of the rotation is 100000 (a rope ratio of 10). ChatGLM2's rope ratio divides positions
instead, so that the demo does not fit there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import glimmer
from glimmer import export
from glimmer.architecture import Architecture
from glimmer.checkpoints import open_checkpoint
from glimmer.model_source import ModelSource
from glimmer.quantization import dequantize
from tests.support import families
from tests.support.demo_model import demo_gguf
from tests.support.golden import golden

Floats = npt.NDArray[np.float32]
WIDTH = 128
"""Of a padded head; the demo's have 64 channels."""


@pytest.fixture(scope="module")
def demo() -> tuple[Architecture, dict[str, Floats]]:
    with open_checkpoint(demo_gguf()) as checkpoint:
        source = ModelSource(checkpoint)
        weights = {}
        for name, shape in source.shapes.items():
            stored = source.read(name)
            weights[name] = dequantize(stored.dtype, stored.data.reshape(-1), shape)
        return source.architecture, weights


def padded(a: Architecture, weights: dict[str, Floats]) -> tuple[Architecture, dict[str, Floats]]:
    def widen(matrix: Floats, heads: int) -> Floats:
        by_head = matrix.reshape(heads, a.head_dim, -1)
        return np.pad(by_head, ((0, 0), (0, WIDTH - a.head_dim), (0, 0))).reshape(heads * WIDTH, -1)

    made = dict(weights)
    for n in range(a.num_layers):
        layer = f"layers.{n}."
        made[layer + "attn_q.weight"] = np.float32(np.sqrt(WIDTH / a.head_dim)) * widen(
            weights[layer + "attn_q.weight"], a.num_heads
        )
        for name in ("attn_k", "attn_v"):
            full = f"{layer}{name}.weight"
            made[full] = widen(weights[full], a.num_kv_heads)
        out = widen(np.ascontiguousarray(weights[layer + "attn_out.weight"].T), a.num_heads)
        made[layer + "attn_out.weight"] = np.ascontiguousarray(out.T)
    return replace(a, head_dim=WIDTH), made


def check_answers(path: Path, family: str) -> None:
    llm = glimmer.LLM(glimmer.load(path, weights="float32"), max_num_seqs=4, max_model_len=512)
    assert llm.model.family == family
    cases = golden("smollm2-135m/golden.json")["cases"]
    params = [
        glimmer.SamplingParams(
            temperature=0, max_new_tokens=len(case["greedy_ids"]), stop_token_ids=(2,)
        )
        for case in cases
    ]
    outputs = llm.generate([case["ids"] for case in cases], params)
    assert [list(output.token_ids) for output in outputs] == [c["greedy_ids"] for c in cases]


def write(tmp_path: Path, family: str, layout: str, demo: Any) -> Path:
    return families.write_folder(tmp_path / "m", family, layout, *demo, dtype="float32")


def test_as_glm4_with_whole_heads_turned(tmp_path: Path, demo: Any) -> None:
    check_answers(write(tmp_path, "glm4", "native", demo), "glm4")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layout"), [("glm4", "native"), ("glm4", "official"), ("chatglm3", "official")]
)
def test_with_padded_heads(tmp_path: Path, family: str, layout: str, demo: Any) -> None:
    path = write(tmp_path, family, layout, padded(*demo))
    check_answers(path, family)
    export.convert(path, tmp_path / "m.gguf", "gguf", family=family)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.metadata["general.architecture"] == "chatglm"
    export.convert(path, tmp_path / "hf", "hf", family=family)
    check_answers(tmp_path / "hf", family)
