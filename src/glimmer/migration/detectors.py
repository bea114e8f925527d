"""The tests that a rule can make of one parameter: given, out of range, too many, not one of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from glimmer.migration.call import UNKNOWN, Call, Detector, Hit
from glimmer.migration.target import Target


def show(value: Any) -> str:
    """A value as a finding may quote it: numbers, booleans and short words, never text."""
    if value is UNKNOWN:
        return "a computed value"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, int | float):
        return str(value) if abs(value) < 1e15 else "a number beyond all use"
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"a string of {len(value)} characters"
    return f"a list of {len(value)}" if isinstance(value, list) else "an object"


def number(value: Any) -> float | None:
    """``value`` as a float if it is a number; neither a boolean nor NaN is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    return None if math.isnan(result) else result


def given(*names: str, unless: tuple[Any, ...] = (None,)) -> Detector:
    """One of these parameters is sent with a value that is not in ``unless``."""

    def detect(call: Call, _: Target) -> Iterator[Hit]:
        for name in names:
            if name in call.parameters:
                value = call.parameters[name]
                if not any(type(value) is type(known) and value == known for known in unless):
                    yield Hit(name, f"{name} is sent")

    return detect


def out_of_range(name: str, low: float, high: float) -> Detector:
    """A number below ``low`` or above ``high``."""

    def detect(call: Call, _: Target) -> Iterator[Hit]:
        value = number(call.parameters.get(name))
        if value is not None and not low <= value <= high:
            yield Hit(name, f"{name} is {show(call.parameters[name])}")

    return detect


def exactly(name: str, *numbers: float) -> Detector:
    """One of these numbers."""

    def detect(call: Call, _: Target) -> Iterator[Hit]:
        if number(call.parameters.get(name)) in numbers:
            yield Hit(name, f"{name} is {show(call.parameters[name])}")

    return detect


def finer_than_hundredths(*names: str) -> Detector:
    """A number with more than two decimals."""

    def detect(call: Call, _: Target) -> Iterator[Hit]:
        for name in names:
            value = number(call.parameters.get(name))
            if value is not None and abs(value) < 1e6 and round(value, 2) != value:
                yield Hit(name, f"{name} is {show(call.parameters[name])}")

    return detect


def more_than(name: str, count: int) -> Detector:
    """A list that is longer than ``count``."""

    def detect(call: Call, _: Target) -> Iterator[Hit]:
        value = call.parameters.get(name)
        if isinstance(value, list) and len(value) > count:
            yield Hit(name, f"{name} has {len(value)} entries")

    return detect


def not_one_of(name: str, *allowed: Any) -> Detector:
    """Another value than these; null and what code computes pass."""

    def detect(call: Call, _: Target) -> Iterator[Hit]:
        value = call.parameters.get(name)
        if value is None or value is UNKNOWN or any(value == known for known in allowed):
            return
        yield Hit(name, f"{name} is {show(value)}")

    return detect


def wrong_length(name: str, low: int, high: int) -> Detector:
    """A string shorter than ``low`` or longer than ``high`` characters."""

    def detect(call: Call, _: Target) -> Iterator[Hit]:
        value = call.parameters.get(name)
        if isinstance(value, str) and not low <= len(value) <= high:
            yield Hit(name, f"{name} has {len(value)} characters")

    return detect


def any_of(*detectors: Detector) -> Detector:
    """All that the detectors find, one after the other."""

    def detect(call: Call, target: Target) -> Iterator[Hit]:
        for detector in detectors:
            yield from detector(call, target)

    return detect
