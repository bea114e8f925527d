"""What a server can be told of engines: by its file, in code and by flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glimmer.cli.main import main
from glimmer.errors import InvalidParameterError
from glimmer.server.config import ModelConfig, load_config
from glimmer.vllm.backend import check_url

MODEL = {"name": "m", "source": "somewhere"}


def loaded(**values: Any) -> ModelConfig:
    return load_config(models=[{**MODEL, **values}]).models[0]


def test_backends_are_vllms(tmp_path: Path) -> None:
    file = tmp_path / "glimmer.toml"
    file.write_text(
        "[[models]]\nname = 'm'\nsource = 'x'\n"
        "backends = ['http://a:1', {url = 'http://b:1', key_env = 'KEY_OF_B'}]\n"
        "[[models]]\nname = 'n'\nsource = 'x'\nengine = 'vllm'\nengine_args = ['--a', '1']\n"
        "[[models]]\nname = 'o'\nsource = 'x'\n"
    )
    first, second, third = load_config(file).models
    assert first.engine == "vllm"
    assert [(b.url, b.key_env) for b in first.backends] == [
        ("http://a:1", "GLIMMER_BACKEND_API_KEY"),
        ("http://b:1", "KEY_OF_B"),
    ]
    assert (second.engine, second.engine_args) == ("vllm", ["--a", "1"])
    assert third.engine == "native"


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"engine": "native", "backends": ["http://a"]}, "backends is for the engine vllm"),
        ({"engine_args": ["--x"]}, "engine_args is for the engine vllm"),
        ({"device": "cuda"}, "device is for the engine torch"),
        ({"engine": "torch", "activations": "int8"}, "native engine's"),
        ({"engine": "vllm", "adapters": {"a": "b"}}, "adapters means nothing"),
        ({"engine": "vllm", "threads": 2}, "threads means nothing to the engine vllm"),
        ({"engine": "vllm", "kv": "int8"}, "kv means nothing to the engine vllm"),
        ({"engine": "vllm", "weights": "int4"}, "int4 form"),
        ({"backends": ["http://a"], "weights": "float16"}, "named as backends"),
        ({"backends": ["http://a"], "engine_args": ["--x"]}, "named as backends"),
        ({"engine": "tpu"}, "engine is wrong"),
        ({"backends": [{"key_env": "A"}]}, "url is wrong"),
    ],
)
def test_what_goes_together(values: dict[str, Any], part: str) -> None:
    with pytest.raises(InvalidParameterError, match=part):
        loaded(**values)


@pytest.mark.parametrize(
    "url",
    [
        *("", "a:1", "ftp://a", "http://", "http://a:x", "http://a:0", "http://[::1"),
        *("http://u:p@a", "http://a/?x=1", "http://a#b"),
        *("http://a..b", "http://a b", "http://a\0b", f"http://{'a' * 64}"),
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InvalidParameterError):
        check_url(url)


@pytest.mark.parametrize(
    "url", ["https://a:1", "https://a:1/", "https://a:1/v1", "https://a:1/v1/"]
)
def test_addresses(url: str) -> None:
    assert check_url(url) == "https://a:1"
    assert check_url("http://[::1]:8000") == "http://[::1]:8000"


def test_what_stands_behind_two_dashes_is_the_engines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["serve", "m=x", "--engine", "vllm", "--print-config"]
    assert main([*command, "--", "--tensor-parallel-size", "2", "-v"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["engine_args"] == ["--tensor-parallel-size", "2", "-v"]
    assert model["source"] == "x"
    command = ["serve", "m=x", "--print-config", "--backend", "http://a", "--backend", "http://b"]
    assert main(command) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["engine"] == "vllm"
    assert [b["url"] for b in model["backends"]] == ["http://a", "http://b"]
