"""Whatever is sent to any route: no failure of ours, and no answer that is not documented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from glimmer.server.run import Server
from tests.support.server import running

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance,
]  # fmt: skip


@pytest.fixture(scope="module")
def small(models: list[dict[str, Any]]) -> Iterator[Server]:
    """Of a short context, so that no answer is long."""
    with running({**models[2], "max_model_len": 128}) as found:
        yield found


def check_all(server: Server, examples: settings, model: str = "plain", **only: str) -> int:
    """The number of operations that were tried; ``only`` chooses some of them."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    if only:
        schema = schema.include(**only)
    count = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        assert operation is not None

        @examples
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = model  # what nobody serves is refused unseen
            case.call_and_validate(checks=CHECKS, timeout=60)

        check()
        count += 1
    return count


def common(max_examples: int, **values: Any) -> settings:
    return settings(
        max_examples=max_examples,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        **values,
    )


def test_every_route(small: Server) -> None:
    assert check_all(small, common(12, derandomize=True)) >= 25


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_route_at_length(small: Server) -> None:
    check_all(small, common(300))
