"""A conversation, keystroke by keystroke: commands, keys and turns that go wrong."""

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from glimmer.cli import slash_commands
from glimmer.cli.conversation import Conversation, Turn
from glimmer.cli.session import ChatSession
from tests.cli.fake_llm import NOTICE, FakeLLM

ENTER = "\r"
ALT_ENTER = "\x1b\r"
BACKSPACE = "\x7f"
CTRL_C = "\x03"
CTRL_D = "\x04"

Type = Callable[..., ChatSession]


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


@pytest.fixture
def type_(keyboard: PipeInput, llm: FakeLLM) -> Type:
    """A whole session of these keys, then Ctrl-D."""

    def run_session(*keys: str, show_stats: bool = False) -> ChatSession:
        keyboard.send_text("".join(keys) + CTRL_D)
        session = ChatSession(llm, llm.default_params, Conversation(), show_stats=show_stats)  # type: ignore[arg-type]
        session.run()
        return session

    return run_session


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """All that a person has seen."""

    def both() -> str:
        captured = capsys.readouterr()
        return captured.err + captured.out

    return both


def test_a_conversation_carries_what_was_said(
    type_: Type, llm: FakeLLM, capsys: pytest.CaptureFixture[str]
) -> None:
    type_("hello", ENTER, "and you?", ENTER)
    assert llm.asked[1] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "You said: hello "},
        {"role": "user", "content": "and you?"},
    ]
    captured = capsys.readouterr()
    assert captured.out == "You said: hello \nYou said: and you? \n"
    assert NOTICE in captured.err
    assert "/help" in captured.err


def test_enter_on_nothing_asks_nothing(type_: Type, llm: FakeLLM) -> None:
    type_(ENTER, "  ", ENTER)
    assert llm.asked == []


def test_alt_enter_begins_a_new_line(type_: Type, llm: FakeLLM) -> None:
    type_("one", ALT_ENTER, "two", ENTER)
    assert llm.asked[0][-1]["content"] == "one\ntwo"


def test_adapters_are_chosen(type_: Type, llm: FakeLLM, said: Callable[[], str]) -> None:
    llm.options["adapters"] = {"one": "x", "two": "y"}
    type_(
        "a", ENTER, "/adapter two", ENTER, "a", ENTER, "/adapter three", ENTER, "a", ENTER,
        "/adapter off", ENTER, "a", ENTER,
    )  # fmt: skip
    assert llm.used == ["one", "two", "two", None]
    shown = said()
    assert "Fake with one, context of 4096 tokens." in shown
    assert "Answers come from the model with two. Other adapters: one." in shown
    assert "There is no adapter three; there are: one, two." in shown
    assert "Answers come from the model alone. Other adapters: one, two." in shown


def test_exit_leaves(type_: Type, llm: FakeLLM) -> None:
    type_("/exit", ENTER, "hello", ENTER)
    assert llm.asked == []


def test_help_tells_commands_and_keys(type_: Type, said: Callable[[], str]) -> None:
    type_("/help", ENTER)
    shown = said()
    for word in ("/system", "/reset", "/retry", "/params", "/stats", "/exit", "Alt-Enter", "Esc"):
        assert word in shown


def test_an_unknown_command_gets_a_kind_answer(
    type_: Type, llm: FakeLLM, said: Callable[[], str]
) -> None:
    type_("/rest", ENTER, "/xyzzy", ENTER, " /etc is a folder", ENTER)
    shown = said()
    assert "There is no command /rest. Did you mean /reset?" in shown
    assert "There is no command /xyzzy. /help lists them" in shown
    assert [m[-1]["content"] for m in llm.asked] == ["/etc is a folder"]


def test_system(type_: Type, llm: FakeLLM, said: Callable[[], str]) -> None:
    type_(
        "/system Be brief.", ENTER, "/system", ENTER, "a", ENTER, "/system off", ENTER, "b", ENTER
    )
    assert llm.asked[0][0] == {"role": "system", "content": "Be brief."}
    assert llm.asked[1][0]["role"] == "user"
    assert "Be brief." in said()


def test_reset_keeps_the_system_prompt(type_: Type, llm: FakeLLM) -> None:
    type_("/system Be brief.", ENTER, "a", ENTER, "/reset", ENTER, "b", ENTER)
    assert [m["content"] for m in llm.asked[1]] == ["Be brief.", "b"]


def test_retry_asks_the_last_question_again(
    type_: Type, llm: FakeLLM, said: Callable[[], str]
) -> None:
    session = type_("/retry", ENTER, "a", ENTER, "b", ENTER, "/retry", ENTER)
    assert [m[-1]["content"] for m in llm.asked] == ["a", "b", "b"]
    assert [turn.question for turn in session.conversation.turns] == ["a", "b"]
    shown = said()
    assert "There is no answer to try again." in shown
    assert "Temperature 0 gives the same answer again" in shown


def test_a_failed_retry_keeps_the_answer_there_was(type_: Type, llm: FakeLLM) -> None:
    session = type_("a", ENTER)
    old = Turn("long text", "answered while there was room")
    session.conversation.turns[:] = [old]
    slash_commands.run(session, "/retry")
    assert session.conversation.turns == [old]


def test_params_are_shown_and_set(type_: Type, llm: FakeLLM, said: Callable[[], str]) -> None:
    type_(
        *["/params temperature=0.7 stop='a b'", ENTER, "a", ENTER],
        *["/params warmth=1", ENTER, "/params top_p=7", ENTER, "/params", ENTER],
    )
    assert (llm.params[0].temperature, llm.params[0].stop) == (0.7, ("a b",))
    shown = said()
    assert "temperature=0.7\n" in shown
    assert "The names are temperature, top_p" in shown
    assert "top_p must be above 0 and at most 1, but it is 7.0." in shown


def test_params_without_effect_are_told(type_: Type, said: Callable[[], str]) -> None:
    type_("/params top_k=3", ENTER)
    assert "top_k has no effect at temperature 0" in said()


def test_stats(type_: Type, said: Callable[[], str]) -> None:
    type_("/stats", ENTER, "a", ENTER, "/stats", ENTER)
    shown = said()
    assert "There is no answer yet." in shown
    assert "answer 3 tokens, 4.0 tokens/s" in shown
    assert "10 of 4096 tokens of context" in shown


def test_stats_after_every_answer(type_: Type, said: Callable[[], str]) -> None:
    type_("a", ENTER, "b", ENTER, show_stats=True)
    assert said().count("first token after 0.25 s") == 2


def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(
    type_: Type, llm: FakeLLM, said: Callable[[], str]
) -> None:
    session = type_("stopped here", ENTER, "go on", ENTER)
    assert session.conversation.turns[0] == Turn("stopped here", "You said: ", stopped=True)
    assert llm.aborted == 1
    assert llm.asked[1][1] == {"role": "assistant", "content": "You said: "}
    assert "Stopped" in said()


def test_ctrl_c_before_the_first_word_gives_the_question_back(
    type_: Type, llm: FakeLLM, said: Callable[[], str]
) -> None:
    session = type_("silent", ENTER, CTRL_C, "a", ENTER)
    assert [turn.question for turn in session.conversation.turns] == ["a"]
    assert "Stopped before the answer began" in said()


def test_ctrl_c_clears_a_line_and_on_an_empty_one_gives_a_hint(
    type_: Type, llm: FakeLLM, said: Callable[[], str]
) -> None:
    type_("wrong", CTRL_C, "right", ENTER, CTRL_C, "again", ENTER)
    assert [m[-1]["content"] for m in llm.asked] == ["right", "again"]
    assert said().count("Ctrl-D or /exit leaves.)") == 1


def test_a_prompt_that_is_too_long_is_explained_and_comes_back(
    type_: Type, llm: FakeLLM, said: Callable[[], str]
) -> None:
    session = type_("long text", ENTER, BACKSPACE * 4, "story", ENTER, CTRL_C)
    shown = said()
    assert "The prompt has 9999 tokens, but the context has 4096." in shown
    assert "make room with /reset" in shown
    assert [m[-1]["content"] for m in llm.asked] == ["long text", "long story"]
    assert session.conversation.turns == []


def test_an_error_in_an_answer_does_not_end_the_conversation(
    type_: Type, llm: FakeLLM, said: Callable[[], str]
) -> None:
    session = type_("broken here", ENTER, CTRL_C, "a", ENTER)
    assert [turn.question for turn in session.conversation.turns] == ["a"]
    assert "The logits are not numbers." in said()


def test_a_cut_answer_is_told(type_: Type, said: Callable[[], str]) -> None:
    type_("cut", ENTER)
    assert "it has reached max_new_tokens" in said()


def test_what_was_typed_is_remembered_for_its_owner_only(type_: Type, state_home: Path) -> None:
    history = state_home / "glimmer" / "chat_history"
    history.parent.mkdir()
    history.touch(mode=0o644)
    type_("remember me", ENTER)
    assert "+remember me" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_written_is_told(
    type_: Type, llm: FakeLLM, state_home: Path, said: Callable[[], str]
) -> None:
    (state_home / "glimmer").write_text("a file where the folder should be")
    type_("hello", ENTER)
    assert "what you type is not remembered" in said()
    assert len(llm.asked) == 1


def test_bytes_that_are_not_text_are_replaced(
    type_: Type, keyboard: PipeInput, llm: FakeLLM
) -> None:
    keyboard.send_bytes(b"caf\xe9 au lait" + ENTER.encode())
    type_()
    assert llm.asked[0][-1]["content"] == "caf\ufffd au lait"
