"""Anthropic's client against a front before vLLM: the tests of the native server, as they are."""

from __future__ import annotations

from tests.server.test_anthropic import (
    client,
    test_a_form,
    test_a_message_and_its_stream_say_the_same,
    test_a_thought_that_comes_back,
    test_refusals,
    test_stop_sequences,
    test_the_context_is_full,
    test_the_events_are_as_documented,
    test_the_second_question_finds_the_first_in_the_cache,
    test_thoughts,
    test_tools_there_and_back,
    test_what_is_not_followed_is_said,
)
