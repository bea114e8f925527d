"""A conversation at a terminal: reads, answers, and survives whatever goes wrong with one turn."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from glimmer.cli import slash_commands, stats, terminal
from glimmer.cli.conversation import Conversation, Turn
from glimmer.cli.loading import chosen_adapter
from glimmer.cli.one_shot import Thoughts, end_note
from glimmer.cli.prompt_line import PromptLine
from glimmer.errors import GlimmerError, PromptTooLongError

if TYPE_CHECKING:
    from glimmer import LLM, RequestOutput, SamplingParams


class ChatSession:
    """The state that slash commands may look at and change."""

    def __init__(
        self, llm: LLM, params: SamplingParams, conversation: Conversation, *, show_stats: bool
    ) -> None:
        self.llm = llm
        self.params = params
        self.conversation = conversation
        self.adapter = chosen_adapter(llm)
        self.show_stats = show_stats
        self.last_output: RequestOutput | None = None
        self.left = False
        self._draft = ""
        self._console = terminal.messages()

    def run(self) -> None:
        """Talk until the person leaves."""
        self._greet()
        line = PromptLine([f"/{name}" for name in slash_commands.COMMANDS])
        while not self.left:
            draft, self._draft = self._draft, ""
            try:
                self._handle(line.read(draft))
            except KeyboardInterrupt:
                self.say("(Ctrl-D or /exit leaves.)")
            except EOFError:
                self.left = True

    def ask(self, question: str) -> bool:
        """Answer a question and add both to the conversation.

        Returns False when there is no answer: the question is then offered again, for editing.
        """
        output = None
        try:
            outputs = self.llm.chat(
                self.conversation.messages(question),
                self.params,
                thinking=self.conversation.thinking,
                adapter=self.adapter,
                stream=True,
            )
            output = self._show(outputs)
        except PromptTooLongError as error:
            self.complain(str(error))
            self.say("Your text is back on the line: shorten it, or make room with /reset.")
        except GlimmerError as error:
            self.complain(str(error))
        if output is None:
            self._draft = question
            return False
        self.last_output = output
        for note in output.notes if len(self.conversation.turns) == 0 else ():
            self._console.print(note, style="yellow")
        stopped = output.finish_reason is None
        self.conversation.turns.append(Turn(question, output.text, stopped))
        if stopped:
            self.say("(Stopped. What there is of the answer is kept; /retry asks again.)")
        elif note := end_note(self.llm, output):
            self.say(note)
        if self.show_stats:
            self.say(stats.describe(output))
        return True

    def say(self, text: str) -> None:
        """A remark of the program's own."""
        self._console.print(terminal.printable(text), style="dim")

    def complain(self, text: str) -> None:
        self._console.print(terminal.printable(text), style="red")

    def _greet(self) -> None:
        model = self.llm.model
        adapted = f" with {self.adapter}" if self.adapter else ""
        self.say(f"{model.name}{adapted}, context of {self.llm.max_model_len} tokens.")
        if model.notice is not None:
            self._console.print(terminal.printable(model.notice), style="yellow")
        self.say("/help tells the commands and keys, Ctrl-D leaves.")

    def _handle(self, entry: str) -> None:
        if entry.startswith("/"):
            slash_commands.run(self, entry)
        elif entry.strip():
            self.ask(entry.strip())

    def _show(self, outputs: Generator[RequestOutput, None, None]) -> RequestOutput | None:
        """Print an answer as it grows; Ctrl-C stops it.

        Returns what there is of the answer: its ``finish_reason`` is None if it was stopped, and
        it is None itself if that was before the first token.
        """
        output = None
        thoughts = Thoughts(self._console)
        try:
            for output in outputs:
                thoughts.show(output)
                terminal.write(output.delta)
        except KeyboardInterrupt:
            # The engine works on for a request until its stream is closed.
            outputs.close()
            if output is None:
                self.say("\n(Stopped before the answer began.)")
        finally:
            if output is not None:
                terminal.write("\n")
        return output
