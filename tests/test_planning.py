"""The plan against the memory that a process really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glimmer.checkpoints import ConfigCheckpoint
from glimmer.cli.main import main
from glimmer.cli.plan import parse_tokens
from glimmer.errors import InvalidParameterError
from glimmer.families import all_families
from glimmer.model_memory import fitting_context, memory_of
from tests.support import families
from tests.support.demo_model import demo_gguf

# The highest resident memory of a process that loads a model and fills its context.
_MEASURE = """
import sys
from glimmer import LLM, SamplingParams
path, weights, context = sys.argv[1], sys.argv[2], int(sys.argv[3])
llm = LLM(path, weights=weights, max_num_seqs=1, max_model_len=context)
params = SamplingParams(temperature=0, max_new_tokens=4, ignore_eos=True)
llm.generate([[5] * (context - 4)], params)
status = open("/proc/self/status").read()
print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line))
"""


def measured(path: Path, weights: str, context: int) -> int:
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell a process's peak memory")
    command = [sys.executable, "-c", _MEASURE, str(path), weights, str(context)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def check(path: Path, weights: Any, context: int) -> None:
    planned = memory_of(path, weights=weights, context=context).plan.peak
    assert planned == pytest.approx(measured(path, weights, context), rel=0.1)


@pytest.mark.parametrize("weights", ["auto", "float16"])
def test_the_demo(weights: str) -> None:
    check(demo_gguf(), weights, 1024)


def test_a_folder_that_is_converted_at_load(tmp_path: Path) -> None:
    architecture = families.tiny_architecture(
        "chatglm3", vocab_size=40000, hidden_size=768, num_layers=6, num_heads=12, head_dim=64,
        intermediate_size=2048, max_position=2048,
    )  # fmt: skip
    path = families.write_folder(
        tmp_path / "m", "chatglm3", "official", architecture,
        families.tiny_weights(architecture), dtype="float16",
    )  # fmt: skip
    for weights in ("auto", "int4"):
        check(path, weights, 1024)


def test_experts_and_float32_keys(tmp_path: Path) -> None:
    architecture = families.tiny_architecture(
        "glm45", vocab_size=20000, hidden_size=512, num_layers=6, num_heads=8, head_dim=64,
        intermediate_size=1024, max_position=2048,
    )  # fmt: skip
    path = families.write_folder(
        tmp_path / "m", "glm45", "native", architecture,
        families.tiny_weights(architecture), dtype="bfloat16",
    )  # fmt: skip
    check(path, "auto", 1024)


@pytest.mark.parametrize(
    "release", [r for f in all_families().values() for r in f.releases if r.config]
)
def test_every_release_can_be_planned_from_its_config(release: Any) -> None:
    memory = memory_of(release.name)
    checkpoint = ConfigCheckpoint(release.name, release.config)
    family = all_families()[memory.family]
    assert family.recognise(checkpoint)
    assert memory.architecture.max_position >= release.context_length
    billions = memory.architecture.num_parameters / 1e9
    said = release.name.lower().replace("glm-4.5-air", "107b").replace("glm-4.5", "353b")
    sizes = [part[:-1] for part in said.split("-") if part.endswith("b") and part[:-1].isdigit()]
    assert billions == pytest.approx(float(sizes[0]), rel=0.06)


def test_int4_of_6b_fits_into_8_gib() -> None:
    for name in ("chatglm-6b", "chatglm3-6b"):
        assert memory_of(name, weights="int4", context=2048).plan.running < 7 * 2**30
        assert memory_of(name, weights="float16", context=2048).plan.running < 15 * 2**30


def test_advice_for_what_does_not_fit() -> None:
    memory = memory_of("chatglm3-6b", context=8192)
    assert "--weights int8" in (fitting_context(memory, 8 * 2**30) or "")
    assert "--weights int4" in (fitting_context(memory, 5 * 2**30) or "")
    assert fitting_context(memory, 2**30) is None


def test_contexts_as_people_write_them() -> None:
    assert [parse_tokens(text) for text in ("8192", "32K", "1m")] == [8192, 32768, 1048576]
    for text in ("", "x", "-1", "1.5K"):
        with pytest.raises(InvalidParameterError, match="32K"):
            parse_tokens(text)


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "chatglm3-6b", "--context", "8K", "--weights", "int4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["context"] == 8192
    assert report["peak_bytes"] >= report["running_bytes"] > report["bytes"]["weights"] > 3 * 2**30
    config = {**all_families()["glm4"].releases[1].config}  # type: ignore[dict-item]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", str(tmp_path / "config.json")]) == 0
    assert "glm4" in capsys.readouterr().out
    assert main(["plan", "chatglm-6b", "--context", "4K"]) == 2
    assert "2048" in capsys.readouterr().err
