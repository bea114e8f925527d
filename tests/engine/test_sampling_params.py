"""Values out of range are refused with what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from glimmer.engine import SamplingParams
from glimmer.errors import InvalidParameterError


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "between 0"),
        ("temperature", float("nan"), "between 0"),
        ("temperature", "hot", "between 0"),
        ("top_p", 0, "above 0 and at most 1"),
        ("top_p", 1.5, "above 0 and at most 1"),
        ("top_k", -1, "0 (keep all) or more"),
        ("top_k", 1.5, "a whole number"),
        ("min_p", 1.1, "between 0 and 1"),
        ("max_new_tokens", 0, "1 or more"),
        ("seed", -1, "None or a whole number"),
        ("seed", 2**64, "None or a whole number"),
        ("n", 0, "from 1 to 128"),
        ("n", True, "from 1 to 128"),
        ("best_of", 0, "from n to 128"),
        ("best_of", 129, "from n to 128"),
        ("constraint", "json", "glimmer.Constraint"),
        ("loop_guard", 4, "glimmer.LoopLimits"),
        ("stop", ("",), "non-empty"),
        ("stop_token_ids", (-1,), "token ids"),
        ("logprobs", 21, "0 to 20"),
        ("logit_bias", {-1: 0.0}, "token id"),
        ("logit_bias", {1: 101.0}, "between -100 and 100"),
        ("repetition_penalty", 0, "above 0"),
        ("presence_penalty", 3, "between -2 and 2"),
        ("frequency_penalty", True, "between -2 and 2"),
    ],
)
def test_refused(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        SamplingParams(**{name: value})
    assert allowed in str(caught.value)
    assert name in str(caught.value)


def test_what_is_given_is_frozen() -> None:
    bias = {3: 1.0}
    params = SamplingParams(stop="END", logit_bias=bias, stop_token_ids=[4])  # type: ignore[arg-type]
    bias[3] = 9.0
    assert params.stop == ("END",)
    assert params.stop_token_ids == (4,)
    assert params.logit_bias[3] == 1.0
    with pytest.raises(AttributeError):
        params.top_k = 3  # type: ignore[misc]
