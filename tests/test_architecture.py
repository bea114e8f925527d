"""The house as it is drawn: import layers, a cheap import, a public surface that is a list."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import glimmer
from glimmer.families import all_families
from glimmer.native import _core

ROOT = Path(__file__).resolve().parents[1]


def test_import_layers() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import glimmer",
        "import glimmer; glimmer.LLM, glimmer.load, glimmer.SamplingParams",
        "import glimmer.cli.main",
    ],
)
def test_imports_neither_torch_nor_transformers(statement: str) -> None:
    loaded = _modules_after(statement)
    assert loaded.isdisjoint({"torch", "transformers"})


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert _modules_after("import glimmer").isdisjoint({"numpy", "tokenizers", "rich", "typer"})


def _modules_after(statement: str) -> set[str]:
    command = f"{statement}; import json, sys; print(json.dumps(list(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    return set(json.loads(result.stdout))


def test_public_surface() -> None:
    assert glimmer.__all__ == [
        "LLM",
        "AsyncLLM",
        "Constraint",
        "GlimmerError",
        "LoadedModel",
        "LoopLimits",
        "Message",
        "ModelSummary",
        "RequestOutput",
        "SamplingParams",
        "inspect",
        "load",
    ]
    for name in glimmer.__all__:
        assert getattr(glimmer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = glimmer.nothing


def test_no_family_is_named_outside_its_folder() -> None:
    names = {*all_families(), "chatglm", "chatglm2", "chatglm3", "glm4", "glm4_0414", "glm45"}
    sources = [
        *(ROOT / "csrc").rglob("*.cpp"),
        *(ROOT / "csrc").rglob("*.h"),
        *(p for p in (ROOT / "src").rglob("*.py") if "families" not in p.parts),
    ]
    # GGUF calls its pre-tokenizers by family names; that table is about a file format.
    sources.remove(ROOT / "src/glimmer/tokenizers/pre_tokenizers.py")
    named = {
        str(path.relative_to(ROOT))
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        for name in names
        if f'"{name}"' in line.lower()
    }
    assert named == set()


def test_the_stub_of_the_core_is_current() -> None:
    from nanobind.stubgen import StubGen

    generator = StubGen(_core)
    generator.put(_core)
    committed = (ROOT / "src/glimmer/native/_core.pyi").read_text(encoding="utf-8")
    assert generator.get() == committed, "run: python -m nanobind.stubgen -m glimmer.native._core"
