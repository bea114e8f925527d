"""Option definitions, and the two other places that must say the same."""

import inspect
from dataclasses import dataclass, fields
from typing import Annotated, get_args, get_type_hints

import pytest
import typer

from glimmer import SamplingParams
from glimmer.cli import sampling
from glimmer.cli.options import LoadOptions, SamplingOptions, spread_options
from glimmer.errors import InvalidParameterError
from glimmer.loader import Weights
from glimmer.session import KVCacheKind


def test_weights_are_those_that_can_be_loaded() -> None:
    assert get_type_hints(LoadOptions)["weights"] == Weights
    assert "int4" in get_args(Weights)
    assert get_type_hints(LoadOptions)["kv"] == KVCacheKind


def test_sampling_has_the_same_names_everywhere() -> None:
    names = [f.name for f in fields(SamplingOptions)]
    assert sorted(names) == sorted(sampling.NAMES)
    assert set(names) <= {f.name for f in fields(SamplingParams)}


def test_spread_options_puts_the_fields_into_the_signature_and_back() -> None:
    @dataclass(frozen=True)
    class Group:
        size: Annotated[int, typer.Option(min=1)] = 3

    received = []

    @spread_options
    def command(model: str, *, group: Group, loud: bool = False) -> None:
        received.append((model, group, loud))

    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["model", "size", "loud"]
    assert parameters["size"].default == 3
    command(model="m", size=5, loud=True)
    assert received == [("m", Group(5), True)]


def test_parse() -> None:
    assert sampling.parse("") == {}
    assert sampling.parse("temperature=0.5 top_k=3 seed=none stop='a b' stop=c") == {
        "temperature": 0.5,
        "top_k": 3,
        "seed": None,
        "stop": ("a b", "c"),
    }
    assert sampling.parse("stop=") == {"stop": ()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temperature", "Parameters look like temperature=0.8"),
        ("warmth=1", "The names are temperature"),
        ("top_k=many", "top_k must be a whole number, but it is 'many'"),
        ("stop='open", "quotes do not close"),
    ],
)
def test_parse_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said):
        sampling.parse(text)


def test_describe_is_what_parse_reads() -> None:
    params = SamplingParams(temperature=0.3, seed=5, stop=("a b", "'"))
    values = sampling.parse(sampling.describe(params))
    assert SamplingParams(**values) == params
    plain = SamplingParams()
    assert SamplingParams(**sampling.parse(sampling.describe(plain))) == plain
