"""`convert` to a packed folder, and what every command makes of one."""

import json
from pathlib import Path

from glimmer.checkpoints.packed import WEIGHTS_FILE
from tests.cli.conftest import Run
from tests.support.tiny_gguf import tiny_gguf


def test_what_a_packed_folder_says(tmp_path: Path, run: Run) -> None:
    source = tiny_gguf(tmp_path / "tiny.gguf")
    result = run("convert", str(source), str(tmp_path / "p"), "--to", "packed", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert set(report["weights_by_dtype"]) == {"q4_0", "float32"}
    shown = json.loads(run("show", str(tmp_path / "p"), "--tensors", "--json").stdout)
    assert (shown["format"], shown["family"], shown["name"]) == ("packed", "smollm", "tiny")
    assert shown["runnable"]
    names = {tensor["name"] for tensor in shown["tensors"]}
    assert {"embedding.weight", "layers.1.mlp_down.weight"} <= names
    assert "packed" in run("doctor", str(tmp_path / "p")).stdout
    assert run("plan", str(tmp_path / "p")).exit_code == 0
    # The file of weights stands for its folder.
    file = str(tmp_path / "p" / WEIGHTS_FILE)
    assert json.loads(run("show", file, "--json").stdout)["format"] == "packed"
    answer = run(
        "generate", str(tmp_path / "p"), "-p", "The", "--max-new-tokens", "4", "--seed", "1"
    )
    same = run("generate", str(source), "-p", "The", "--max-new-tokens", "4", "--seed", "1")
    assert (answer.exit_code, answer.stdout) == (same.exit_code, same.stdout) == (0, answer.stdout)
