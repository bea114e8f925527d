"""Messages or text in, text out: a model, its KV cache and its engine behind one object."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, Unpack, overload

from glimmer.engine import EngineStats, SamplingParams
from glimmer.errors import InvalidParameterError
from glimmer.infilling import Infilling, InfillMethod, InfillOptions, InfillOutput
from glimmer.loader import LoadedModel, Weights, load
from glimmer.outputs import RequestOutput
from glimmer.session import (
    Adapters,
    ChatOptions,
    GenerateOptions,
    Group,
    KVCacheKind,
    Messages,
    Params,
    Prepared,
    Prompt,
    Session,
    ToolChoice,
    Tools,
)

DEFAULT_MAX_NUM_SEQS = 8


class LLM:
    """A model ready to chat.

    ``max_num_seqs`` requests at most run at a time; others wait. ``max_model_len`` is the longest
    prompt and answer together, in tokens; by default the model's limit, or less where memory is
    short. ``kv_memory`` bounds the KV cache: bytes, or text such as "2GiB". ``kv_cache="auto"`` is
    float16, or float32 for a model in float32; "int8" takes half the memory of float16.
    ``prefix_caching`` keeps what was computed of a prompt for the next one that begins with it;
    ``speculation`` drafts tokens from the text itself. Neither changes an answer. ``adapters`` are
    folders by the name by which requests choose one: PEFT's LoRA or prefix tuning, or a checkpoint
    of P-Tuning v2; ``load_adapter`` adds others later.

    Not for use from several threads at a time; ``AsyncLLM`` is for that.

    Raises:
        OutOfMemoryError: the context asked for does not fit.
        InvalidParameterError: a value that is not allowed; and whatever ``load`` raises.
    """

    def __init__(
        self,
        model: LoadedModel | str | os.PathLike[str],
        *,
        weights: Weights = "auto",
        family: str | None = None,
        num_threads: int | None = None,
        max_num_seqs: int = DEFAULT_MAX_NUM_SEQS,
        max_model_len: int | None = None,
        kv_cache: KVCacheKind = "auto",
        kv_memory: int | str | None = None,
        prefix_caching: bool = True,
        speculation: bool = True,
        adapters: Adapters = None,
    ) -> None:
        if not isinstance(model, LoadedModel):
            model = load(model, weights=weights, family=family, num_threads=num_threads)
        self._session = Session.native(
            model,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            kv_cache=kv_cache,
            kv_memory=kv_memory,
            max_waiting=None,
            prefix_caching=prefix_caching,
            speculation=speculation,
            adapters=adapters,
        )

    @property
    def model(self) -> LoadedModel:
        model = self._session.model
        assert isinstance(model, LoadedModel)
        return model

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self._session.max_model_len

    @property
    def default_params(self) -> SamplingParams:
        """What the release asks for; SamplingParams' own values where it is silent."""
        return self._session.default_params

    @property
    def kv_cache_bytes(self) -> int:
        """Address space of the KV cache; memory is taken as blocks are first used."""
        return self._session.kv_cache_bytes

    @property
    def stats(self) -> EngineStats:
        return self._session.stats

    @property
    def adapters(self) -> list[str]:
        """Names that ``adapter=`` may have."""
        return self._session.adapters.names

    def load_adapter(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Read an adapter, which requests may name from now on.

        Raises:
            InvalidParameterError: the name is taken.
            CheckpointError: the folder is at fault, or does not fit the model; the message says
                how.
        """
        self._session.adapters.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that run with it end with it. Raises AdapterNotFoundError."""
        self._session.adapters.unload(name)

    @overload
    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        tools: Tools = None,
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        tools: Tools = None,
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> Generator[RequestOutput, None, None]: ...

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        tools: Tools = None,
        *,
        tool_choice: ToolChoice = "auto",
        thinking: bool | None = None,
        priority: int = 0,
        adapter: str | None = None,
        stream: bool = False,
    ) -> RequestOutput | Generator[RequestOutput, None, None]:
        """The model's next message in a conversation.

        ``tools`` are OpenAI's; an answer that calls some ends with "tool_calls". ``tool_choice``
        is OpenAI's too: "required" or the name of a tool make the answer a call, "none" offers no
        tool. ``thinking`` asks a model that can do both to think first or not. A request of lower
        ``priority`` is served sooner. ``adapter`` is the name of one that was loaded. With
        ``stream`` an iterator of the answer as it grows; closing it aborts the request.

        Raises:
            PromptTooLongError: the conversation fills the context.
            InvalidParameterError: messages or tools that the family cannot express, a constraint
                that cannot be read.
            AdapterNotFoundError: no adapter of this name is loaded.
            GenerationError: the model produced no usable logits.
        """
        prepared = self._session.prepare_chat(
            messages,
            params,
            tools,
            tool_choice=tool_choice,
            thinking=thinking,
            priority=priority,
            adapter=adapter,
        )
        return self._stream([prepared]) if stream else self._finish([prepared])[0]

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        progress: bool = False,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        progress: bool = False,
        stream: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> Generator[RequestOutput, None, None]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        allow_special: bool = False,
        priority: int = 0,
        adapter: str | None = None,
        progress: bool = False,
        stream: bool = False,
    ) -> list[RequestOutput] | Generator[RequestOutput, None, None]:
        """Continue raw prompts, texts or lists of token ids, without a chat template.

        ``params`` is one for all or one for each; outputs come in the order of the prompts, and one
        whose request failed has the finish reason "error" and tells why in ``error`` (a single
        prompt raises it). With ``stream`` they are interleaved as they grow; ``index`` says whose
        each is. ``allow_special`` lets the text of control tokens in a prompt become those tokens.
        ``adapter`` is the name of one that was loaded. ``progress`` shows a bar on standard error.

        Raises: as ``chat``.
        """
        prepared = self._session.prepare_prompts(
            prompts, params, allow_special=allow_special, priority=priority, adapter=adapter
        )
        return self._stream(prepared) if stream else self._finish(prepared, progress)

    @overload
    def infill(
        self,
        text: str,
        params: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        **options: Unpack[InfillOptions],
    ) -> InfillOutput: ...

    @overload
    def infill(
        self,
        text: str,
        params: SamplingParams | None = None,
        *,
        stream: Literal[True],
        **options: Unpack[InfillOptions],
    ) -> Generator[InfillOutput, None, None]: ...

    def infill(
        self,
        text: str,
        params: SamplingParams | None = None,
        *,
        method: InfillMethod = "auto",
        priority: int = 0,
        adapter: str | None = None,
        stream: bool = False,
    ) -> InfillOutput | Generator[InfillOutput, None, None]:
        """Fill the blanks of a text, [MASK], [sMASK] or [gMASK], one after another.

        A blank is a few words for [MASK], a sentence for [sMASK], the rest of the text for a
        [gMASK] at its end. Each is filled with the text around it and all that was filled before in
        view; ``method`` says how these are laid out (see ``glimmer.infilling``). ``params`` hold
        for each fill. With ``stream`` an iterator of the text as it grows; closing it aborts the
        request.

        Raises:
            InvalidParameterError: no blank in the text; a network that sees a text from left to
                right only.
            AdapterNotFoundError: no adapter of this name is loaded.
            PromptTooLongError: the text, or the text and the first fills, leave no room in the
                context.
            GenerationError: the model produced no usable logits.
        """
        infilling = Infilling(
            self._session, text, params, method=method, priority=priority, adapter=adapter
        )
        outputs = self._fill(infilling)
        if stream:
            return outputs
        *_, last = outputs
        return replace(last, delta=last.text)

    def _fill(self, infilling: Infilling) -> Generator[InfillOutput, None, None]:
        while not infilling.is_finished:
            for output in self._stream([infilling.prepare()]):
                yield infilling.take(output)

    def _stream(self, prepared: Sequence[Prepared]) -> Generator[RequestOutput, None, None]:
        for p in prepared:
            check_streamable(p.requests[0].params)
        return self._follow(self._session.start(prepared))

    def _follow(self, groups: Sequence[Group]) -> Generator[RequestOutput, None, None]:
        try:
            while unfinished := [g for g in groups if not g.is_finished or g.is_pending]:
                if not any(g.is_pending for g in unfinished):
                    self._session.step()
                for group in unfinished:
                    for output in group.news():
                        if output.error is not None and len(groups) == 1:
                            raise output.error
                        yield output
        finally:
            self._session.forget(groups)

    def _finish(self, prepared: Sequence[Prepared], progress: bool = False) -> list[RequestOutput]:
        groups = self._session.start(prepared)
        try:
            with _progress_bar(len(groups), shown=progress) as advance:
                unfinished = list(groups)
                while unfinished:
                    self._session.step()
                    left = [g for g in unfinished if not g.is_finished]
                    advance(len(unfinished) - len(left))
                    unfinished = left
            results = [group.result() for group in groups]
        finally:
            self._session.forget(groups)
        if len(results) == 1 and results[0].error is not None:
            raise results[0].error
        return results


def check_streamable(params: SamplingParams) -> None:
    """Raise InvalidParameterError for an answer that is known at its end only."""
    if params.best_of is not None and params.best_of > params.n:
        raise InvalidParameterError(
            f"best_of is {params.best_of}: which answers are the best is known when all have "
            "ended, so they cannot be streamed. Leave out best_of or stream."
        )


@contextmanager
def _progress_bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """Gives what counts prompts that are answered."""
    if not shown:
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress("Prompts answered", *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
