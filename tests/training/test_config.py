"""Settings of fine-tuning: what YAML and flags say, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glimmer.catalogue import releases
from glimmer.cli.main import main
from glimmer.errors import InvalidParameterError, ModelNotFoundError
from glimmer.model_memory import memory_of
from glimmer.training.choices import base_dtype
from glimmer.training.config import LEARNING_RATES, FinetuneConfig, load_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples" / "finetune").glob("*.yaml"))
LEAST = {"model": "demo", "data": "a.jsonl", "output": "out"}


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "model: demo\ndata: [a.jsonl, b.jsonl]\noutput: out\n"
        "learning_rate: 1e-4\nmixed_precision: no\n"
    )
    config = load_config(file, {"output": "other", "lora_rank": 4})
    assert config.data == [Path("a.jsonl"), Path("b.jsonl")]
    assert (config.output, config.lora_rank) == (Path("other"), 4)
    # YAML 1.1 reads 1e-4 as text and no as false.
    assert (config.learning_rate, config.mixed_precision) == (1e-4, "no")


def test_one_file_stands_for_a_list() -> None:
    assert load_config(None, LEAST).data == [Path("a.jsonl")]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lora_rnk": 4}, r"no setting 'lora_rnk': did you mean 'lora_rank'\?"),
        ({"zzz": 1}, r"no setting 'zzz'\. The settings are model, data, "),
        ({"method": "lor"}, "method is 'lor', which is not allowed"),
        ({"epochs": -1}, "epochs is -1, which is not allowed"),
        ({"eval_data": "b", "eval_share": 0.1}, "eval_data or eval_share, not both"),
        ({"eval_every": 5}, "eval_every needs eval_data or eval_share"),
        ({"eval_data": "./a.jsonl"}, r"a\.jsonl is in data and in eval_data"),
        ({"lora_targets": []}, "lora_targets is .., which is not allowed"),
        ({"lora_targets": ["q_proj", "all-linear"]}, "all-linear and others"),
        ({"packing": True, "objective": "dpo"}, "packing is for sft"),
        ({"packing": True, "method": "ptuning"}, "exclude each other"),
        ({"fsdp": True, "method": "qlora"}, "fsdp is not for qlora"),
        ({"fsdp": True, "deepspeed": "d.json"}, "exclude each other"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said):
        load_config(None, LEAST | changed)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidParameterError, match="lack 'output': The folder that is written"):
        load_config(None, {"model": "demo", "data": "a"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "but it is a list"),
        ("a: [", "is not YAML"),
        ("!!python/name:os.system", "not YAML"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InvalidParameterError, match=said):
        load_config(file)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no configuration file nothing\.yaml"):
        load_config(Path("nothing.yaml"))


def test_learning_rates() -> None:
    for method, rate in LEARNING_RATES.items():
        assert load_config(None, LEAST | {"method": method}).peak_learning_rate == rate
    made = load_config(None, LEAST | {"objective": "dpo"})
    assert made.peak_learning_rate == pytest.approx(LEARNING_RATES["lora"] / 10)
    assert load_config(None, LEAST | {"learning_rate": 0.5}).peak_learning_rate == 0.5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_tell_their_memory(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(path)
    assert config.model in releases()
    assert path.stem == config.model

    text = path.read_text(encoding="utf-8")
    ((told, command),) = re.findall(
        r"# Memory, PyTorch itself not counted: (.*) GiB, as this.*\n#   glimmer (.*)\n", text
    )
    assert main([*command.split(), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model"] == config.model
    assert f"{plan['peak_bytes'] / 2**30:.3g}" == told
    choices = plan["choices"]
    # What a run on such a device would take; where the config says so, on any.
    release = memory_of(config.model)
    on_processor = plan["device"] == "cpu"
    wanted = base_dtype(config.method, config.dtype, release.stored["layers.0.attn_q.weight"],
                        on_processor=on_processor)  # fmt: skip
    assert choices["dtype"] == (wanted if wanted != "auto" else "float16")
    assert choices["method"] == config.method
    assert choices["batch_size"] == config.batch_size
    assert choices["objective"] == config.objective
    assert choices["length"] == config.max_length
    assert config.dtype in ("auto", choices["dtype"])
    for name in ("gradient_checkpointing", "lora_rank", "prefix_tokens", "prefix_projection"):
        assert choices[name] == getattr(config, name), name


def test_there_is_an_example_for_each_family() -> None:
    from glimmer.families import all_families

    of_family = {r.name: f.name for f in all_families().values() for r in f.releases}
    assert {of_family[path.stem] for path in EXAMPLES} == set(all_families())


def test_the_documents_list_every_key_and_its_default() -> None:
    page = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
    table = page.partition("## Every key")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|$", table, re.MULTILINE)
    made = load_config(None, LEAST)
    assert [name for name, _, _ in rows] == list(FinetuneConfig.model_fields)
    for name, default, description in rows:
        field, value = FinetuneConfig.model_fields[name], getattr(made, name)
        if field.is_required():
            shown = ""
        elif value in (None, []):
            shown = "none"
        elif isinstance(value, bool):
            shown = f"`{str(value).lower()}`"
        elif isinstance(value, list):
            shown = f"`{', '.join(value)}`"
        elif isinstance(value, float):
            shown = f"`{value:g}`"
        else:
            shown = f"`{value}`"
        assert (default.strip(), description) == (shown, field.description), name


def test_settings_and_rows_need_no_torch() -> None:
    script = (
        "import sys, glimmer.training; from glimmer.training import load_config, FinetuneConfig; "
        "import glimmer.training.finetuning.dataset; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
