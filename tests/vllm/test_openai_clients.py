"""OpenAI's client against a front before vLLM: the tests of the native server, as they are."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.test_openai import (
    client,
    test_chat_and_stream_say_the_same,
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

__all__ = [
    "client",
    "test_chat_and_stream_say_the_same",
    "test_json",
    "test_models",
    "test_penalties_and_biases_are_followed",
    "test_refusals",
    "test_several_answers",
    "test_the_code_of_a_prompt_that_is_too_long",
    "test_the_second_question_finds_the_first_in_the_cache",
    "test_tokens_there_and_back",
    "test_tools_there_and_back",
    "test_what_is_not_followed_is_said",
]


def test_embeddings_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="gives no embeddings"):
        client.embeddings.create(model="glm-4", input="a")


def test_completions(client: openai.OpenAI) -> None:
    values: dict[str, Any] = {"model": "plain", "max_tokens": 6, "temperature": 0, "logprobs": 1}
    whole = client.completions.create(prompt=["The quick", "dog"], n=2, **values)
    assert [c.index for c in whole.choices] == [0, 1, 2, 3]
    assert whole.choices[0].text == whole.choices[1].text, "greedy answers are one"
    told = whole.choices[2].logprobs
    assert told is not None
    assert told.token_logprobs
    assert len(told.tokens or ()) == len(told.token_logprobs)
    pieces = ["", ""]
    for chunk in client.completions.create(prompt=["The quick", "dog"], stream=True, **values):
        for part in chunk.choices:
            pieces[part.index] += part.text
    assert pieces == [whole.choices[0].text, whole.choices[2].text]
    values.pop("logprobs")
    echoed = client.completions.create(prompt="dog", echo=True, **values).choices[0].text
    assert echoed == "dog" + whole.choices[2].text
    best = client.completions.create(prompt="dog", n=2, best_of=4, seed=1, **values)
    assert len(best.choices) == 2
