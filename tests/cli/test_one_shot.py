"""`chat -p`, piped text and `generate`: one answer, on standard output alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_llm import NOTICE, FakeLLM

ROOT = Path(__file__).parents[2]


def test_the_answer_and_nothing_else_is_on_standard_output(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "-p", "hello", "--stats")
    assert result.exit_code == 0
    assert result.stdout == "You said: hello \n"
    assert NOTICE in result.stderr
    assert "prompt 7 tokens, 28.0 tokens/s | first token after 0.25 s" in result.stderr
    assert "answer 3 tokens, 4.0 tokens/s" in result.stderr
    assert "peak memory" in result.stderr


@pytest.mark.parametrize(
    ("prompt", "stdin", "asked"),
    [
        ("hello", b"", "hello"),
        (None, b"hello\n", "hello"),
        (None, b"one\ntwo\r\n", "one\ntwo"),
        ("Sum up:", b"a document\n", "Sum up:\n\na document"),
        ("", b"only this", "only this"),
        (None, "你好\n".encode(), "你好"),
    ],
)
def test_the_prompt_comes_from_the_option_and_standard_input(
    run: Run, llm: FakeLLM, prompt: str | None, stdin: bytes, asked: str
) -> None:
    option = [] if prompt is None else ["-p", prompt]
    assert run("chat", *option, stdin=stdin).exit_code == 0
    assert llm.asked == [[{"role": "user", "content": asked}]]


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["chat"], b"", "The prompt is empty"),
        (["chat", "-p", " \n"], b"", "The prompt is empty"),
        (["generate", "demo", "-p", ""], b"", "The prompt is empty"),
        (["chat"], b"caf\xe9", "byte 3 is 0xe9"),
        (["chat", "-p", "caf\udce9"], b"", "must be UTF-8"),
    ],
)
def test_a_prompt_that_is_none_is_wrong_use(
    run: Run, llm: FakeLLM, arguments: list[str], stdin: bytes, said: str
) -> None:
    result = run(*arguments, stdin=stdin)
    assert (result.exit_code, result.stdout, llm.asked) == (2, "", [])
    assert said in result.stderr


def test_a_pipe_that_stays_silent_is_told_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.fake_llm", "chat", "-p", "hello"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "Waiting for text on standard input" in process.stderr.readline()
    out, _ = process.communicate("late", timeout=60)
    assert out == "You said: hello\n\nlate \n"


def test_the_system_prompt_goes_first(run: Run, llm: FakeLLM) -> None:
    run("chat", "-p", "hello", "--system", "Be brief.")
    assert llm.asked[0][0] == {"role": "system", "content": "Be brief."}


def test_json_is_one_object(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "-p", "你好", "--json")
    assert result.stdout.count("\n") == 1
    assert "你好" in result.stdout
    answer = json.loads(result.stdout)
    assert answer == {
        "model": "Fake",
        "text": "You said: 你好 ",
        "reasoning": None,
        "tool_calls": [],
        "notes": [],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 0},
        "timing": {
            "time_to_first_token_s": 0.25,
            "total_s": 1.5,
            "prefill_tokens_per_s": 28.0,
            "decode_tokens_per_s": 4.0,
        },
    }


def test_unset_options_are_the_releases_recommendation(run: Run, llm: FakeLLM) -> None:
    run("chat", "-p", "hello")
    assert llm.params == [llm.default_params]


def test_options_reach_the_model(run: Run, llm: FakeLLM) -> None:
    run(
        *["chat", "-p", "hello", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "40"],
        *["--min-p", "0.1", "--repetition-penalty", "1.1", "--presence-penalty", "0.2"],
        *["--frequency-penalty", "0.3", "--seed", "7", "--max-new-tokens", "9"],
        *["--stop", "a", "--stop", "b", "--ctx", "99", "--kv-memory", "1GiB"],
        *["--no-loop-guard", "--kv", "int8"],
    )
    (params,) = llm.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 40, 0.1)
    assert (params.repetition_penalty, params.presence_penalty) == (1.1, 0.2)
    assert (params.frequency_penalty, params.seed, params.max_new_tokens) == (0.3, 7, 9)
    assert params.stop == ("a", "b")
    assert params.loop_guard is False
    assert llm.options == {
        **{"max_num_seqs": 1, "max_model_len": 99, "kv_cache": "int8", "kv_memory": "1GiB"},
        "adapters": {},
    }


def test_an_option_without_effect_is_told(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "-p", "hello", "--top-p", "0.5", "--seed", "1")
    assert "note: top_p, seed has no effect at temperature 0" in result.stderr


def test_an_answer_that_was_cut_is_told(run: Run, llm: FakeLLM) -> None:
    assert "it has reached max_new_tokens, 4" in run("chat", "-p", "cut this").stderr
    llm.max_model_len = 10
    assert "the context of 10 tokens is full" in run("chat", "-p", "cut this").stderr


def test_a_pipe_gets_the_models_own_bytes(run: Run, llm: FakeLLM) -> None:
    assert run("chat", "-p", "colour").stdout == "\x1b[31mred\x9b0m \n"


def test_ctrl_c_ends_with_130_and_keeps_what_was_said(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "-p", "stopped here")
    assert (result.exit_code, result.stdout) == (130, "You said: \n")
    assert result.stderr.strip() == NOTICE


def test_an_error_after_some_words(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "-p", "broken here")
    assert (result.exit_code, result.stdout) == (1, "You said: \n")
    assert "error: The logits are not numbers." in result.stderr


def test_a_prompt_that_is_too_long_ends_with_2(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "-p", "long text")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "9999 tokens" in result.stderr


def test_generate_continues_the_raw_prompt(run: Run, llm: FakeLLM) -> None:
    result = run("generate", "demo", "-p", "<|sop|>Once")
    assert result.stdout == "You said: <|sop|>Once \n"
    run("generate", "demo", "--special", stdin=b"<|sop|>Once\n")
    assert llm.asked == [(["<|sop|>Once"], False), (["<|sop|>Once"], True)]


def test_generate_answers_in_json(run: Run, llm: FakeLLM) -> None:
    assert json.loads(run("generate", "demo", "-p", "Once", "--json").stdout)["text"]
