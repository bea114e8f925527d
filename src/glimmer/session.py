"""What ``LLM`` and ``AsyncLLM`` share: prompts become requests, and steps become answers."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypedDict, cast, get_args

from glimmer.adapter_pool import AdapterPool, load_all
from glimmer.answer import Answer
from glimmer.architecture import TextLayout
from glimmer.chat import AnswerParser, Message, ToolSpec, to_messages, to_tools
from glimmer.engine import (
    AdapterWeights,
    Constraint,
    Engine,
    EngineStats,
    LoopLimits,
    Request,
    SamplingParams,
    TokenConstraint,
    TokenEngine,
)
from glimmer.errors import InvalidParameterError, OutOfMemoryError, PromptTooLongError
from glimmer.loader import LoadedModel
from glimmer.native import BLOCK_SIZE, kv_block_bytes
from glimmer.native.model import Float32Array, KVDType
from glimmer.outputs import RequestOutput
from glimmer.text_model import TextModel
from glimmer.tokenizers import Tokenizer

if TYPE_CHECKING:
    from glimmer.constraints import ConstraintCompiler

Prompt = str | Sequence[int]
Params = SamplingParams | Sequence[SamplingParams] | None
Messages = Sequence[Message | Mapping[str, object]]
Tools = Sequence[Mapping[str, object] | ToolSpec] | None
ToolChoice = Literal["auto", "none", "required"] | Mapping[str, object]
Adapters = Mapping[str, str | os.PathLike[str]] | None
"""By name, the folders of adapters."""
KVCacheKind = Literal["auto", "float16", "float32", "int8"]


class RequestOptions(TypedDict, total=False):
    """What any request may have beside its text and its params, of ``LLM`` as of ``AsyncLLM``."""

    priority: int
    """A request of a lower one is served sooner. Default: 0."""
    adapter: str | None
    """The name of one that was loaded. Default: none."""


class ChatOptions(RequestOptions, total=False):
    tool_choice: ToolChoice
    """OpenAI's: "required" or the name of a tool make the answer a call, "none" offers no tool.
    Default: "auto"."""
    thinking: bool | None
    """Asks a model that can do both to think first or not. Default: as the family has it."""


class GenerateOptions(RequestOptions, total=False):
    allow_special: bool
    """Whether the text of control tokens in a prompt becomes those tokens. Default: no."""


# What a KV cache may take of free memory unless the caller says.
_DEFAULT_KV_SHARE = 0.8
_MAX_SEED = 2**64
# No token of any family's has more characters that are no blanks; text has 2 to 5 a token.
_MAX_TOKEN_CHARS = 128


@dataclass(frozen=True, slots=True)
class Prepared:
    """One prompt, ready to be started: a request for each answer that is drawn."""

    index: int
    requests: tuple[Request, ...]
    tokenizer: Tokenizer | None
    make_parser: Callable[[], AnswerParser] | None
    notes: tuple[str, ...]


class Group:
    """The answers to one prompt."""

    def __init__(self, prepared: Prepared) -> None:
        self.params = prepared.requests[0].params
        self.answers = [
            Answer(
                request,
                prepared.index,
                prepared.tokenizer,
                prepared.make_parser() if prepared.make_parser is not None else None,
                prepared.notes,
                choice=choice,
            )
            for choice, request in enumerate(prepared.requests)
        ]

    @property
    def is_finished(self) -> bool:
        return all(a.finish_reason is not None for a in self.answers)

    @property
    def is_pending(self) -> bool:
        """Whether something has happened since it was last shown."""
        return any(a.pending for a in self.answers)

    def news(self) -> list[RequestOutput]:
        """What has happened since it was last shown, of each answer."""
        return [a.output() for a in self.answers if a.pending]

    def result(self) -> RequestOutput:
        """The first answer, and the others in it; the best ones first with ``best_of``."""
        answers = self.answers
        if len(answers) > self.params.n:
            answers = sorted(answers, key=lambda a: -a.mean_logprob)[: self.params.n]
        outputs = [replace(a.output(), choice=i) for i, a in enumerate(answers)]
        if len(outputs) == 1:
            return outputs[0]
        return replace(outputs[0], choices=tuple(outputs))


class Session:
    """A model's text side and the engine that runs its network. One thread at a time, but for
    ``prepare_*``.
    """

    def __init__(
        self,
        model: TextModel,
        engine: TokenEngine,
        max_model_len: int,
        adapters: AdapterPool,
        *,
        cache_bytes: tuple[int, int] = (0, 0),
        plain_layout: bool = False,
    ) -> None:
        """``cache_bytes`` are those of the KV cache in memory, when it is full, and in address
        space. ``plain_layout`` is for forms that an engine elsewhere follows, see
        ``ConstraintCompiler``."""
        self.model = model
        self.engine = engine
        self.max_model_len = max_model_len
        self.adapters = adapters
        self._cache_bytes, self.kv_cache_bytes = cache_bytes
        self._plain_layout = plain_layout
        self._answers: dict[int, Answer] = {}
        self._request_ids = itertools.count()

    @classmethod
    def native(
        cls,
        model: LoadedModel,
        *,
        max_num_seqs: int,
        max_model_len: int | None,
        kv_cache: KVCacheKind,
        kv_memory: int | str | None,
        max_waiting: int | None,
        prefix_caching: bool,
        speculation: bool,
        adapters: Adapters = None,
    ) -> Session:
        """On the engine of this process, with a KV cache of its own."""
        for name, value in (("max_num_seqs", max_num_seqs), ("max_waiting", max_waiting)):
            if value is not None and value < 1:
                raise InvalidParameterError(f"{name} must be at least 1, but it is {value}.")
        if kv_cache not in get_args(KVCacheKind):
            raise InvalidParameterError(
                f"kv_cache must be one of {', '.join(get_args(KVCacheKind))}, but it is "
                f"{kv_cache!r}."
            )
        dtype = model.default_kv_dtype if kv_cache == "auto" else kv_cache
        num_blocks, context = plan_cache(model, dtype, max_num_seqs, max_model_len, kv_memory)
        pool = AdapterPool(model, dtype)
        load_all(pool, adapters)
        cache = model.runner.new_cache(num_blocks, dtype)
        engine = Engine(
            model.runner,
            cache,
            max_num_seqs=max_num_seqs,
            max_model_len=context,
            max_waiting=max_waiting,
            prefix_caching=prefix_caching,
            speculation=speculation,
        )
        used = cache.num_blocks * kv_block_bytes(model.architecture, dtype)
        return cls(model, engine, context, pool, cache_bytes=(used, cache.size_bytes))

    @property
    def default_params(self) -> SamplingParams:
        return SamplingParams(**self.model.sampling)

    @property
    def stats(self) -> EngineStats:
        return self.engine.stats

    @property
    def memory_bytes(self) -> int:
        """Of the weights, the adapters and, when it is full, the KV cache, in this machine."""
        weights = self.model.weights_bytes if isinstance(self.model, LoadedModel) else 0
        return weights + self.adapters.size_bytes + self._cache_bytes

    def embed(self, token_ids: Sequence[int]) -> Float32Array:
        """See ``LoadedModel.embed``.

        Raises:
            InvalidParameterError: the network runs elsewhere, where nobody gives hidden states.
        """
        self.check_embeds()
        assert isinstance(self.model, LoadedModel)
        return self.model.embed(token_ids)

    def check_embeds(self) -> None:
        """Raise InvalidParameterError where there are no embeddings."""
        if not isinstance(self.model, LoadedModel):
            raise InvalidParameterError(
                "This model gives no embeddings, for its network runs in another engine, which "
                "serves answers alone. Serve it with the native engine for that."
            )

    def encode_prompts(self, prompts: Prompt | Sequence[Prompt]) -> list[Sequence[int]]:
        """Token ids of texts that get no answer.

        Raises:
            InvalidParameterError, PromptTooLongError, TokenizerError
        """
        texts = as_prompts(prompts)
        self.refuse_hopeless(prompt for prompt in texts if isinstance(prompt, str))
        given = [
            self.model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            for prompt in texts
        ]
        vocab_size = self.model.architecture.vocab_size
        for ids in given:
            if not ids:
                raise InvalidParameterError("A text holds no token; give at least one.")
            if len(ids) > self.max_model_len:
                raise PromptTooLongError(
                    f"A text takes {len(ids)} tokens, but the context holds {self.max_model_len}."
                )
            if bad := [i for i in ids if not 0 <= i < vocab_size]:
                raise InvalidParameterError(
                    f"The token id {bad[0]} is not in the vocabulary of {vocab_size}."
                )
        if not given:
            raise InvalidParameterError("There is no text; give at least one.")
        return given

    def prepare_chat(
        self,
        messages: Messages,
        params: SamplingParams | None,
        tools: Tools,
        tool_choice: ToolChoice = "auto",
        thinking: bool | None = None,
        priority: int = 0,
        adapter: str | None = None,
    ) -> Prepared:
        """Raises InvalidParameterError, AdapterNotFoundError, TokenizerError."""
        template, specs = self.model.chat_template, to_tools(tools)
        turns = to_messages(messages)
        self.refuse_hopeless(turn.content for turn in turns)
        params = params or self.default_params
        chosen = _chosen_tools(specs, tool_choice)
        if tool_choice == "none":
            specs = ()
        if chosen:
            if params.constraint is not None:
                raise InvalidParameterError(
                    "tool_choice asks for a tool call and params.constraint for another form: "
                    "leave one of them out."
                )
            grammar = self.model.tool_grammar(chosen)
            if grammar is None:
                raise InvalidParameterError(
                    f"Models of the {self.model.family} family do not call tools."
                )
            params = replace(params, constraint=Constraint.grammar(grammar))
        prompt = template.encode(turns, specs, thinking=thinking)
        offered = [*specs, *(tool for turn in turns for tool in turn.tools)]
        return self._prepare(
            0,
            prompt,
            params,
            make_parser=lambda: self.model.answer_parser(offered),
            notes=template.notes(turns, specs),
            thought_end=self.model.thought_end(thinking),
            guards_by_default=True,
            priority=priority,
            adapter=self.adapters.find(adapter),
        )

    def prepare_prompts(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params,
        allow_special: bool = False,
        priority: int = 0,
        adapter: str | None = None,
    ) -> list[Prepared]:
        """Raises InvalidParameterError, AdapterNotFoundError, TokenizerError."""
        given = as_prompts(prompts)
        if params is None or isinstance(params, SamplingParams):
            params = [params or self.default_params] * len(given)
        if len(params) != len(given):
            raise InvalidParameterError(
                f"There must be one params for all prompts or one for each of the {len(given)}, "
                f"but there are {len(params)}."
            )
        weights = self.adapters.find(adapter)
        return [
            self._prepare(
                index, prompt, p, allow_special=allow_special, priority=priority, adapter=weights
            )
            for index, (prompt, p) in enumerate(zip(given, params, strict=True))
        ]

    def prepare_layout(
        self,
        index: int,
        token_ids: Sequence[int],
        layout: TextLayout,
        params: SamplingParams,
        priority: int,
        adapter: AdapterWeights | None,
    ) -> Prepared:
        """A prompt whose tokens stand where ``layout`` says. Raises InvalidParameterError."""
        return self._prepare(
            index,
            token_ids,
            params,
            guards_by_default=True,
            priority=priority,
            layout=layout,
            adapter=adapter,
        )

    def refuse_hopeless(self, texts: Iterable[str]) -> None:
        """Spare the work of encoding what cannot fit, however well it is packed into tokens.

        Raises:
            PromptTooLongError
        """
        length = sum(len(text) - text.count(" ") for text in texts)
        if length > self.max_model_len * _MAX_TOKEN_CHARS:
            raise PromptTooLongError(
                f"The prompt has {length} characters, blanks left out, far more than the context "
                f"holds: {self.max_model_len} tokens. Shorten it or ask for a longer context."
            )

    def start(self, prepared: Sequence[Prepared]) -> list[Group]:
        """Queue the requests; all of them or none.

        Raises: as ``Engine.add_request``.
        """
        groups = [Group(p) for p in prepared]
        try:
            for group in groups:
                for answer in group.answers:
                    self.engine.add_request(answer.request)
                    self._answers[answer.request.request_id] = answer
        except BaseException:
            self.forget(groups)
            raise
        return groups

    def step(self) -> None:
        """One engine step for everybody."""
        for output in self.engine.step():
            answer = self._answers[output.request_id]
            if answer.finish_reason is not None:
                continue  # a stop string came before this token of the same step
            answer.take(output)
            if answer.finish_reason is not None:
                self.engine.abort(output.request_id)  # a stop string; else it is gone already

    def forget(self, groups: Sequence[Group]) -> None:
        """Drop answers, finished or not."""
        for group in groups:
            for answer in group.answers:
                self.engine.abort(answer.request.request_id)
                self._answers.pop(answer.request.request_id, None)

    def _prepare(
        self,
        index: int,
        prompt: Prompt,
        params: SamplingParams,
        *,
        allow_special: bool = False,
        make_parser: Callable[[], AnswerParser] | None = None,
        notes: tuple[str, ...] = (),
        thought_end: str | None = None,
        guards_by_default: bool = False,
        priority: int = 0,
        layout: TextLayout | None = None,
        adapter: AdapterWeights | None = None,
    ) -> Prepared:
        # A model without tokenizer files still continues token ids.
        needs_text = isinstance(prompt, str) or self.model.has_tokenizer
        tokenizer = self.model.tokenizer if needs_text else None
        if isinstance(prompt, str):
            self.refuse_hopeless([prompt])
            prompt = self.model.tokenizer.encode(prompt, allow_special)
        stop_ids = set(params.stop_token_ids)
        if not params.ignore_eos and self.model.has_tokenizer:
            stop_ids.update(self.model.stop_token_ids)
        guard = guards_by_default if params.loop_guard is None else params.loop_guard
        make_constraint = self._constraint(params, thought_end)
        seed = int.from_bytes(os.urandom(8)) if params.seed is None else params.seed
        first = next(self._request_ids)
        count = params.best_of or params.n
        ids = [first, *(next(self._request_ids) for _ in range(count - 1))]
        requests = tuple(
            Request(
                request_id=request_id,
                prompt_token_ids=tuple(prompt),
                params=params,
                stop_token_ids=frozenset(stop_ids),
                seed=(seed + number) % _MAX_SEED,
                loop_limits=(LoopLimits() if guard is True else guard) or None,
                priority=priority,
                fork_of=first if number else None,
                make_constraint=make_constraint,
                layout=layout,
                adapter=adapter,
            )
            for number, request_id in enumerate(ids)
        )
        return Prepared(index, requests, tokenizer, make_parser, notes)

    def _constraint(
        self, params: SamplingParams, thought_end: str | None
    ) -> Callable[[], TokenConstraint] | None:
        if params.constraint is None:
            return None
        grammar = self._compiler.compile(params.constraint)
        return grammar if thought_end is None else self._compiler.after(thought_end, grammar)

    @cached_property
    def _compiler(self) -> ConstraintCompiler:
        from glimmer.constraints import ConstraintCompiler

        return ConstraintCompiler(
            self.model.tokenizer,
            self.model.stop_token_ids,
            self.model.architecture.vocab_size,
            plain_layout=self._plain_layout,
        )


def _chosen_tools(tools: Sequence[ToolSpec], choice: ToolChoice) -> Sequence[ToolSpec]:
    """The tools one of which must be called; none where that is the model's to decide.

    Raises:
        InvalidParameterError: there is no such tool, or no such choice.
    """
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise InvalidParameterError(
                "tool_choice must be auto, none, required or "
                '{"type": "function", "function": {"name": ...}}, but it is ' + f"{choice!r}."
            )
        if choice == "required" and not tools:
            raise InvalidParameterError('tool_choice is "required", but no tools are offered.')
        return tools if choice == "required" else []
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    named = [tool for tool in tools if tool.name == name]
    if not named:
        raise InvalidParameterError(
            f"tool_choice names the tool {name!r}, but the tools offered are "
            f"{', '.join(tool.name for tool in tools) or 'none'}."
        )
    return named


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A single prompt, text or ids, is a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    if len(prompts) > 0 and not isinstance(prompts[0], (str, Sequence)):
        return [cast("Sequence[int]", prompts)]
    return cast("Sequence[Prompt]", prompts)


def plan_cache(
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
    free = model.runner.available_memory()
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
