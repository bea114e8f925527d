"""Messages or text in, text out: a model, its KV cache and its engine behind one object."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Literal, cast, get_args, overload

from glimmer.answer import Answer
from glimmer.chat import AnswerParser, Message, ToolSpec, to_messages, to_tools
from glimmer.engine import Engine, Request, SamplingParams
from glimmer.errors import InvalidParameterError, OutOfMemoryError
from glimmer.loader import LoadedModel, Weights, load
from glimmer.native import BLOCK_SIZE, KVCache, available_memory, kv_block_bytes
from glimmer.native.model import KVDType
from glimmer.outputs import RequestOutput

Prompt = str | Sequence[int]
# What a KV cache may take of free memory unless the caller says.
_DEFAULT_KV_SHARE = 0.8


class LLM:
    """A model ready to chat.

    ``max_model_len`` is the longest prompt and answer together, in tokens; by default the model's
    limit, or less where memory is short. ``kv_memory`` bounds the KV cache: bytes, or text such as
    "2GiB". ``kv_cache="auto"`` is float16, or float32 for a model in float32.

    Not for use from several threads at a time.

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
        max_num_seqs: int = 8,
        max_model_len: int | None = None,
        kv_cache: Literal["auto", "float16", "float32"] = "auto",
        kv_memory: int | str | None = None,
    ) -> None:
        if not isinstance(model, LoadedModel):
            model = load(model, weights=weights, family=family, num_threads=num_threads)
        if max_num_seqs < 1:
            raise InvalidParameterError(
                f"max_num_seqs must be at least 1, but it is {max_num_seqs}."
            )
        if kv_cache not in ("auto", *get_args(KVDType)):
            raise InvalidParameterError(
                f"kv_cache must be auto, {' or '.join(get_args(KVDType))}, but it is {kv_cache!r}."
            )
        self.model = model
        dtype = model.default_kv_dtype if kv_cache == "auto" else kv_cache
        num_blocks, self.max_model_len = _plan_cache(
            model, dtype, max_num_seqs, max_model_len, kv_memory
        )
        self._cache = KVCache(model.native, num_blocks, dtype)
        self._engine = Engine(
            model.native, self._cache, max_num_seqs=max_num_seqs, max_model_len=self.max_model_len
        )
        self._answers: dict[int, Answer] = {}
        self._request_ids = itertools.count()

    @property
    def default_params(self) -> SamplingParams:
        """What the release asks for; SamplingParams' own values where it is silent."""
        return SamplingParams(**self.model.sampling)

    @property
    def kv_cache_bytes(self) -> int:
        """Address space of the KV cache; memory is taken as blocks are first used."""
        return self._cache.size_bytes

    @overload
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        params: SamplingParams | None = None,
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
        *,
        thinking: bool | None = None,
        stream: Literal[False] = False,
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        params: SamplingParams | None = None,
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
        *,
        thinking: bool | None = None,
        stream: Literal[True],
    ) -> Generator[RequestOutput, None, None]: ...

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        params: SamplingParams | None = None,
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
        *,
        thinking: bool | None = None,
        stream: bool = False,
    ) -> RequestOutput | Generator[RequestOutput, None, None]:
        """The model's next message in a conversation.

        ``tools`` are OpenAI's; an answer that calls some ends with "tool_calls". ``thinking`` asks
        a model that can do both to think first or not. With ``stream`` an iterator of the answer as
        it grows; closing it aborts the request.

        Raises:
            PromptTooLongError: the conversation fills the context.
            InvalidParameterError: messages or tools that the family cannot express.
            GenerationError: the model produced no usable logits.
        """
        template, specs = self.model.chat_template, to_tools(tools)
        turns = to_messages(messages)
        prompt = template.encode(turns, specs, thinking=thinking)
        offered = [*specs, *(tool for turn in turns for tool in turn.tools)]
        answers = self._submit(
            [prompt],
            params,
            parser=self.model.answer_parser(offered),
            notes=template.notes(turns, specs),
        )
        return self._stream(answers) if stream else self._finish(answers)[0]

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        allow_special: bool = False,
        stream: Literal[False] = False,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        allow_special: bool = False,
        stream: Literal[True],
    ) -> Generator[RequestOutput, None, None]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        allow_special: bool = False,
        stream: bool = False,
    ) -> list[RequestOutput] | Generator[RequestOutput, None, None]:
        """Continue raw prompts, texts or lists of token ids, without a chat template.

        ``params`` is one for all or one for each; outputs come in the order of the prompts. With
        ``stream`` they are interleaved as they grow; ``index`` says whose each is.
        ``allow_special`` lets the text of control tokens in a prompt become those tokens.

        Raises: as ``chat``.
        """
        answers = self._submit(_as_prompts(prompts), params, allow_special=allow_special)
        return self._stream(answers) if stream else self._finish(answers)

    def _submit(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        *,
        allow_special: bool = False,
        parser: AnswerParser | None = None,
        notes: tuple[str, ...] = (),
    ) -> list[Answer]:
        if params is None or isinstance(params, SamplingParams):
            params = [params or self.default_params] * len(prompts)
        if len(params) != len(prompts):
            raise InvalidParameterError(
                f"There must be one params for all prompts or one for each of the {len(prompts)}, "
                f"but there are {len(params)}."
            )
        answers: list[Answer] = []
        try:
            for index, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
                request = self._request(prompt, p, allow_special)
                self._engine.add_request(request)
                # A model without tokenizer files still continues token ids.
                needs_text = isinstance(prompt, str) or self.model.has_tokenizer
                tokenizer = self.model.tokenizer if needs_text else None
                answers.append(Answer(request, index, tokenizer, parser, notes))
        except BaseException:
            for answer in answers:
                self._engine.abort(answer.request.request_id)
            raise
        self._answers.update((a.request.request_id, a) for a in answers)
        return answers

    def _request(self, prompt: Prompt, params: SamplingParams, allow_special: bool) -> Request:
        if isinstance(prompt, str):
            prompt = self.model.tokenizer.encode(prompt, allow_special)
        stop_ids = set(params.stop_token_ids)
        if not params.ignore_eos and self.model.has_tokenizer:
            stop_ids.update(self.model.stop_token_ids)
        return Request(
            request_id=next(self._request_ids),
            prompt_token_ids=tuple(prompt),
            params=params,
            stop_token_ids=frozenset(stop_ids),
            seed=int.from_bytes(os.urandom(8)) if params.seed is None else params.seed,
        )

    def _stream(self, answers: list[Answer]) -> Generator[RequestOutput, None, None]:
        try:
            while unfinished := [a for a in answers if a.finish_reason is None or a.pending]:
                if not any(a.pending for a in unfinished):
                    self._step()
                for answer in unfinished:
                    if answer.pending:
                        yield _raise_error(answer.output())
        finally:
            self._forget(answers)

    def _finish(self, answers: list[Answer]) -> list[RequestOutput]:
        try:
            while any(a.finish_reason is None for a in answers):
                self._step()
            return [_raise_error(a.output()) for a in answers]
        finally:
            self._forget(answers)

    def _step(self) -> None:
        """One engine step for everybody, the requests of other streams included."""
        for output in self._engine.step():
            answer = self._answers[output.request_id]
            answer.take(output)
            if answer.finish_reason is not None:
                self._engine.abort(output.request_id)  # a stop string; else it is gone already

    def _forget(self, answers: list[Answer]) -> None:
        for answer in answers:
            self._engine.abort(answer.request.request_id)
            self._answers.pop(answer.request.request_id, None)


def _raise_error(output: RequestOutput) -> RequestOutput:
    if output.error is not None:
        raise output.error
    return output


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A single prompt, text or ids, is a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    if len(prompts) > 0 and not isinstance(prompts[0], (str, Sequence)):
        return [cast("Sequence[int]", prompts)]
    return cast("Sequence[Prompt]", prompts)


def _plan_cache(
    model: LoadedModel,
    dtype: KVDType,
    max_num_seqs: int,
    max_model_len: int | None,
    kv_memory: int | str | None,
) -> tuple[int, int]:
    """Blocks of the KV cache, and the longest sequence that it allows.

    Raises:
        OutOfMemoryError, InvalidParameterError
    """
    limit, block_bytes = (
        model.architecture.max_position,
        kv_block_bytes(model.architecture, dtype),
    )
    if max_model_len is not None and not 2 <= max_model_len <= limit:
        raise InvalidParameterError(
            f"max_model_len must be between 2 and the {limit} tokens that {model.name} was built "
            f"for, but it is {max_model_len}."
        )
    free = available_memory()
    if kv_memory is not None:
        budget = parse_bytes(kv_memory)
        if free is not None and budget > free:
            raise OutOfMemoryError(
                f"A KV cache of {budget / 2**30:.2f} GiB was asked for, but {free / 2**30:.2f} GiB "
                "are free. Ask for less."
            )
    else:
        budget = int((free if free is not None else 2**33) * _DEFAULT_KV_SHARE)
    fitting = budget // block_bytes
    wanted = max_model_len or min(limit, fitting * BLOCK_SIZE)
    needed = -(-wanted // BLOCK_SIZE)
    if needed > fitting or wanted < 2:
        raise OutOfMemoryError(
            f"A context of {max(wanted, 2)} tokens takes "
            f"{max(needed, 1) * block_bytes / 2**20:.0f} MiB of KV cache, but "
            f"{budget / 2**20:.0f} MiB are allowed for it. Ask for at most {fitting * BLOCK_SIZE} "
            "tokens, or allow more memory."
        )
    return min(max_num_seqs * needed, fitting), wanted


_UNITS = {
    **{"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9},
    **{"KIB": 2**10, "MIB": 2**20, "GIB": 2**30},
}


def parse_bytes(size: int | str) -> int:
    """Bytes from a number or text such as "512MiB" or "2 GB".

    Raises:
        InvalidParameterError: not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise InvalidParameterError(
            f"A memory size must look like 2GiB, 512MiB or 1000000, but it is {size!r}."
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])
