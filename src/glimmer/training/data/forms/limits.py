"""What forms cannot express, told before an example is written in one."""

from __future__ import annotations

from glimmer.chat import Message
from glimmer.errors import InvalidParameterError
from glimmer.training.data.example import Example, all_answers, last_only


def refuse(form: str, what: str) -> InvalidParameterError:
    return InvalidParameterError(f"the form {form} cannot express {what}.")


def answers(example: Example) -> list[Message]:
    found = [m for m in example.messages if m.role == "assistant"]
    return [*found, example.rejected] if example.rejected is not None else found


def check_texts(example: Example, form: str) -> None:
    """Raise InvalidParameterError for anything in an example but texts."""
    for message in (*example.messages, *answers(example)):
        if message.tool_calls or message.role == "tool":
            raise refuse(form, "tool calls and their results")
    check_plain(example, form)


def check_plain(example: Example, form: str, *, metadata: bool = False) -> None:
    """Raise InvalidParameterError for thoughts, names, tools of a message, or metadata."""
    for message in (*example.messages, *answers(example)):
        if message.reasoning:
            raise refuse(form, "reasoning_content")
        if message.tools:
            raise refuse(form, "tools of a single message")
        if message.name and message.role != "tool":
            raise refuse(form, "the name of a speaker")
        if message.metadata and not metadata:
            raise refuse(form, "metadata")


def check_trained(example: Example, form: str, *, last: bool) -> None:
    """Raise InvalidParameterError unless all answers are trained, or with ``last`` that one alone,
    which is all that counts of a preference."""
    last = last or example.rejected is not None
    wanted = (last_only if last else all_answers)(example.messages)
    if example.trained != wanted:
        said = "the last answer alone" if last else "every answer"
        raise refuse(form, f"which answers are trained: it always trains {said}")


def rounds(example: Example, form: str) -> tuple[str, list[list[str]]]:
    """The system's text, and pairs of question and answer; refuses anything else."""
    messages = list(example.messages)
    system = messages.pop(0).content if messages[0].role == "system" else ""
    roles = [message.role for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise refuse(form, "a conversation in which user and assistant do not take turns")
    texts = [message.content for message in messages]
    return system, [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
