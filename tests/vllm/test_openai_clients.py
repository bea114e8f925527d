"""OpenAI's client against a front before vLLM: the tests of the native server, as they are."""

from __future__ import annotations

import openai
import pytest

from tests.server.test_openai import (
    client,
    test_chat_and_stream_say_the_same,
    test_completions,
    test_json,
    test_models,
    test_penalties_and_biases_are_followed,
    test_refusals,
    test_several_answers,
    test_the_code_of_a_prompt_that_is_too_long,
    test_the_second_question_finds_the_first_in_the_cache,
    test_tokens_there_and_back,
    test_tools_there_and_back,
    test_what_is_not_followed_is_said,
)


def test_embeddings_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="gives no embeddings"):
        client.embeddings.create(model="glm-4", input="a")
