"""One answer as it grows: token by token into text, until a stop string is found in it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from operator import itemgetter

from glimmer.chat import AnswerParser, Event, ParsedAnswer, ReasoningDelta, TextDelta
from glimmer.engine import Request, StepOutput, TokenLogprobs
from glimmer.errors import GlimmerError
from glimmer.outputs import FinishReason, RequestOutput, Timing, ToolCallEvent, Usage
from glimmer.tokenizers import Tokenizer


class Answer:
    """Collects the step outputs of one request and tells what may be shown."""

    def __init__(
        self,
        request: Request,
        index: int,
        tokenizer: Tokenizer | None,
        parser: AnswerParser | None = None,
        notes: tuple[str, ...] = (),
        *,
        choice: int = 0,
    ) -> None:
        """``parser`` tells thoughts and tool calls from text; without one all is text."""
        self.request = request
        self._parser = parser
        # A network may have rows for more tokens than its tokenizer knows: they say nothing.
        self._num_known = tokenizer.vocab_size if tokenizer is not None else 0
        self._controls = {}
        if parser is not None and tokenizer is not None:
            self._controls = {i: token for token, i in tokenizer.special_tokens.items()}
        self._parsed = ParsedAnswer()
        self._events: list[Event] = []
        self._notes = notes
        self.index = index
        self.choice = choice
        self._num_cached = 0
        self.finish_reason: FinishReason | None = None
        self.pending = False
        """Whether something has happened since the last ``output``."""
        self._detokenizer = tokenizer.detokenizer() if tokenizer is not None else None
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._error: GlimmerError | None = None
        self._stop_text: str | None = None
        self._text = ""
        self._shown = 0
        self._started = time.perf_counter()
        self._first_token = self._last_token = self._started

    def take(self, step: StepOutput) -> None:
        """Add a step's output; sets ``finish_reason`` when the answer ends here."""
        self.pending = True
        self._last_token = time.perf_counter()
        self._num_cached = step.num_cached_tokens
        if step.token_id is None:
            self._finish("error", step.error)
            return
        if not self._token_ids:
            self._first_token = self._last_token
        self._token_ids.append(step.token_id)
        if step.logprobs is not None:
            self._logprobs.append(step.logprobs)
        # A stop id is not part of the text, even where it is an ordinary token.
        ends = step.token_id in self.request.stop_token_ids
        if not ends and self._detokenizer is not None:
            if self._parser is not None and (control := self._controls.get(step.token_id)):
                self._handle(self._parser.control(control))
            elif step.token_id < self._num_known:
                self._add(self._detokenizer.push(step.token_id))
        if self.finish_reason is None and step.finish_reason is not None:
            self._finish(step.finish_reason)

    def abort(self) -> None:
        if self.finish_reason is None:
            self.pending = True
            self._finish("aborted")

    def output(self) -> RequestOutput:
        """The answer as it stands; its delta is what was not in an output before."""
        self.pending = False
        end = len(self._text)
        if self.finish_reason is None:
            end = max(self._shown, end - _held_back(self._text, self.request.params.stop))
        delta, self._shown = self._text[self._shown : end], end
        events, self._events = self._events, []
        return RequestOutput(
            index=self.index,
            choice=self.choice,
            token_ids=tuple(self._token_ids),
            text=self._text[:end],
            delta=delta,
            finish_reason=self.finish_reason,
            logprobs=tuple(self._logprobs) if self.request.params.logprobs is not None else None,
            usage=Usage(len(self.request.prompt_token_ids), len(self._token_ids), self._num_cached),
            timing=self._timing(),
            reasoning=self._parsed.reasoning,
            reasoning_delta="".join(e.text for e in events if isinstance(e, ReasoningDelta)),
            tool_calls=self._parsed.tool_calls,
            tool_call_deltas=tuple(e for e in events if isinstance(e, ToolCallEvent)),
            notes=self._notes,
            error=self._error,
            stop_text=self._stop_text,
        )

    @property
    def num_tokens(self) -> int:
        return len(self._token_ids)

    @property
    def error(self) -> GlimmerError | None:
        """Why it failed, if it did."""
        return self._error

    @property
    def mean_logprob(self) -> float:
        """Of its tokens; minus infinity for an answer that failed."""
        if self._error is not None or not self._logprobs:
            return -math.inf
        return sum(entry.logprob for entry in self._logprobs) / len(self._logprobs)

    def _finish(self, reason: FinishReason, error: GlimmerError | None = None) -> None:
        if self._detokenizer is not None:
            self._add(self._detokenizer.finish())
        if self._parser is not None and self.finish_reason is None:
            self._handle(self._parser.finish())
        self._error = error
        if self.finish_reason is None and reason == "stop" and self._parsed.names:
            reason = "tool_calls"
        self.finish_reason = self.finish_reason or reason

    def _add(self, text: str) -> None:
        """Text as the model wrote it."""
        if self._parser is None:
            self._extend(text)
        elif text and self.finish_reason is None:
            self._handle(self._parser.push(text))

    def _handle(self, events: Sequence[Event]) -> None:
        for event in events:
            if self.finish_reason is not None:
                return  # a stop string has ended the answer
            if isinstance(event, TextDelta):
                self._extend(event.text)
            else:
                self._parsed.add([event])
                self._events.append(event)

    def _extend(self, piece: str) -> None:
        stops = self.request.params.stop
        start = max(0, len(self._text) - max(map(len, stops), default=0) + 1)
        self._text += piece
        if found := [(at, s) for s in stops if (at := self._text.find(s, start)) >= 0]:
            end, self._stop_text = min(found, key=itemgetter(0))
            self._text = self._text[:end]
            self.finish_reason = "stop"

    def _timing(self) -> Timing:
        first = self._first_token - self._started
        rest = self._last_token - self._first_token
        return Timing(
            time_to_first_token_s=first,
            total_s=self._last_token - self._started,
            prefill_tokens_per_s=len(self.request.prompt_token_ids) / first if first else 0.0,
            decode_tokens_per_s=(len(self._token_ids) - 1) / rest if rest else None,
        )


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of ``text`` that may turn out to be the beginning of a stop string."""
    longest = 0
    for stop in stops:
        at = max(0, len(text) - len(stop) + 1)
        while (at := text.find(stop[0], at)) >= 0 and not stop.startswith(text[at:]):
            at += 1
        if at >= 0:
            longest = max(longest, len(text) - at)
    return longest
