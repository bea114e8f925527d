"""What a line that begins with a slash does in a conversation."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from glimmer.cli import sampling, stats
from glimmer.errors import InvalidParameterError

if TYPE_CHECKING:
    from glimmer.cli.session import ChatSession


@dataclass(frozen=True, slots=True)
class SlashCommand:
    run: Callable[[ChatSession, str], None]
    help: str
    argument: str = ""


def run(session: ChatSession, entry: str) -> None:
    """Carry out ``/name argument``; an unknown name is told the known ones."""
    name, _, argument = entry[1:].partition(" ")
    command = COMMANDS.get(name.strip())
    if command is not None:
        command.run(session, argument.strip())
        return
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    session.say(
        f"There is no command /{name}. "
        + (f"Did you mean /{near[0]}? " if near else "")
        + "/help lists them; to say this to the model, begin it with a space."
    )


def _help(session: ChatSession, argument: str) -> None:
    rows = [(f"/{name} {c.argument}".rstrip(), c.help) for name, c in COMMANDS.items()]
    rows += [
        ("Alt-Enter", "new line (so does Esc, then Enter); Enter sends"),
        ("Ctrl-C", "stop the answer; clear the line"),
        ("Ctrl-D", "leave"),
    ]
    width = max(len(left) for left, _ in rows)
    session.say("\n".join(f"{left:<{width}}  {right}" for left, right in rows))


def _system(session: ChatSession, argument: str) -> None:
    if argument == "off":
        session.conversation.system = None
        session.say("There is no system prompt now.")
    elif argument:
        session.conversation.system = argument
        session.say("The system prompt is set; it holds from the next answer on.")
    else:
        session.say(session.conversation.system or "There is no system prompt.")


def _reset(session: ChatSession, argument: str) -> None:
    session.conversation.turns.clear()
    session.say("The conversation begins anew; the system prompt and the parameters stay.")


def _retry(session: ChatSession, argument: str) -> None:
    turns = session.conversation.turns
    if not turns:
        session.say("There is no answer to try again.")
        return
    if session.params.temperature == 0:
        session.say("(Temperature 0 gives the same answer again; try /params temperature=0.8.)")
    turn = turns.pop()
    if not session.ask(turn.question):
        turns.append(turn)


def _params(session: ChatSession, argument: str) -> None:
    try:
        values = sampling.parse(argument)
        session.params = replace(session.params, **values)
    except InvalidParameterError as error:
        session.complain(str(error))
        return
    note = sampling.effect_note(session.params, values)
    session.say(note or sampling.describe(session.params))


def _adapter(session: ChatSession, argument: str) -> None:
    names = session.llm.adapters
    if argument == "off":
        session.adapter = None
    elif argument in names:
        session.adapter = argument
    elif argument:
        session.complain(
            f"There is no adapter {argument}; there are: {', '.join(names) or 'none'}."
        )
        return
    others = ", ".join(name for name in names if name != session.adapter)
    session.say(
        f"Answers come from the model {f'with {session.adapter}' if session.adapter else 'alone'}."
        + (f" Other adapters: {others}." if others else "")
    )


def _stats(session: ChatSession, argument: str) -> None:
    if session.last_output is None:
        session.say("There is no answer yet.")
        return
    usage = session.last_output.usage
    session.say(stats.describe(session.last_output))
    session.say(
        f"{usage.prompt_tokens + usage.completion_tokens} of {session.llm.max_model_len} tokens of "
        "context used at its end"
    )


def _exit(session: ChatSession, argument: str) -> None:
    session.left = True


COMMANDS: Mapping[str, SlashCommand] = {
    "help": SlashCommand(_help, "list the commands and keys"),
    "system": SlashCommand(_system, "show, set or (off) remove the system prompt", "[TEXT|off]"),
    "reset": SlashCommand(_reset, "forget the conversation"),
    "retry": SlashCommand(_retry, "ask the last question again"),
    "params": SlashCommand(_params, "show or set sampling values", "[name=value ...]"),
    "adapter": SlashCommand(_adapter, "show, choose or (off) leave an adapter", "[NAME|off]"),
    "stats": SlashCommand(_stats, "speed and memory of the last answer"),
    "exit": SlashCommand(_exit, "leave"),
}
