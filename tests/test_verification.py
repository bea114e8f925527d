from __future__ import annotations

import json
from pathlib import Path

import pytest

from glimmer.cli.main import main
from glimmer.errors import InvalidParameterError
from glimmer.export import quantize_model
from glimmer.verification import compare
from tests.support.demo_model import demo_gguf
from tests.support.tiny_gguf import tiny_gguf
from tests.test_export import LAYOUTS, folder


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_fewer_bits_are_further_away(tmp_path: Path, family: str, layout: str) -> None:
    path = folder(tmp_path, family, layout)
    reports = [compare(path, weights=w, family=family) for w in ("float32", "int8", "int4")]
    same, eight, four = reports
    assert same.kl_divergence == same.logit_error_max == 0
    assert same.greedy_agreement == 1
    assert same.perplexity == same.reference_perplexity
    assert set(same.layer_errors) == {0.0}
    assert 0 < eight.logit_error_mean < four.logit_error_mean
    assert 0 < eight.kl_divergence < four.kl_divergence
    assert all(0 < a < b < 1 for a, b in zip(eight.layer_errors, four.layer_errors, strict=True))
    assert same.tokenizer is not None
    # ChatGLM-6B's tokenizer changes full-width marks to ASCII, as the official one does.
    assert (same.tokenizer.failed == ()) == (family != "chatglm")


def test_a_copy_against_its_original(tmp_path: Path) -> None:
    path = folder(tmp_path, "glm4", "native")
    quantize_model(path, tmp_path / "q.gguf", "q8_0")
    report = compare(tmp_path / "q.gguf", against=path)
    assert 0 < report.kl_divergence < 0.1
    other = folder(tmp_path / "o", "glm4", "native", num_layers=2)
    with pytest.raises(InvalidParameterError, match="not the same model"):
        compare(path, against=other)


def test_the_demo_foretells_text_nearly_as_in_float32() -> None:
    text = "The capital of France is Paris. The capital of Italy is Rome. " * 4
    report = compare(demo_gguf(), text=text)
    assert report.perplexity == pytest.approx(report.reference_perplexity, rel=0.01)
    assert report.greedy_agreement > 0.97
    assert report.reference_perplexity < 6


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_gguf(tmp_path / "m.gguf")
    assert main(["verify", str(path), "--tokens", "64", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_tokens"] == 64
    assert len(report["layer_errors"]) == 3
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe")
    assert main(["verify", str(path), "--text", str(tmp_path / "t.txt")]) == 2
    assert main(["verify", str(path)]) == 0
    assert "perplexity" in capsys.readouterr().out
