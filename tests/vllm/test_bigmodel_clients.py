"""The platform's clients against a front before vLLM: the tests of the native server."""

from __future__ import annotations

from tests.server.test_bigmodel import (
    client,
    pytestmark,
    test_a_request_id_that_lives_is_refused,
    test_chat_and_stream_say_the_same,
    test_do_sample_false_is_greedy,
    test_fields_of_openais_dialect_work_too,
    test_json,
    test_refusals,
    test_thinking,
    test_tool_stream,
    test_tools_there_and_back,
)
