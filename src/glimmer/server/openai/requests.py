"""What OpenAI's clients send, field by field, with what we add. Fields that are not here are
accepted and named in a header of the answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from glimmer.engine import Constraint
from glimmer.errors import InvalidParameterError
from glimmer.infilling import InfillMethod
from glimmer.server.bodies import Body, Count, Few, Items, JsonObject, Stop
from glimmer.server.errors import ApiError

_MAX_TEXTS = 2048
"""To be embedded in one request, as OpenAI has it."""


class StreamOptions(Body):
    include_usage: bool = False


class Thinking(Body):
    type: Literal["enabled", "disabled"]


class TemplateOptions(Body):
    enable_thinking: bool | None = None


class SamplingBody(Body):
    """What completions and chat completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stop | Annotated[Items[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Few] | None = None
    max_tokens: Count | None = None
    """New tokens, as everywhere here."""
    user: str | None = None

    top_k: Annotated[int, Field(ge=-1, le=1 << 30)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Lower is sooner."""
    adapter: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """The name of one that the server has loaded for the model."""
    ignore_eos: bool | None = None
    loop_guard: bool | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: Items[str] | None = None

    def sampling(self) -> dict[str, Any]:
        """Values of SamplingParams; raises ApiError."""
        values: dict[str, Any] = {
            "temperature": self.temperature,
            # A nucleus of nothing still holds the likeliest token.
            "top_p": max(self.top_p, 1e-9) if self.top_p is not None else None,
            "top_k": max(self.top_k, 0) if self.top_k is not None else None,
            "min_p": self.min_p,
            "n": self.n,
            "seed": self.seed % 2**64 if self.seed is not None else None,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "max_new_tokens": self.max_new_tokens,
            "ignore_eos": self.ignore_eos,
            "loop_guard": self.loop_guard,
            "constraint": self.constraint(),
            "logit_bias": _token_biases(self.logit_bias),
            "stop": tuple(s for s in self._stops() if s) or None,
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_tokens

    def constraint(self) -> Constraint | None:
        """The form of the answer; raises ApiError where there are two, or one that is none."""
        forms: list[tuple[str, Constraint]] = []
        try:
            if self.regex is not None:
                forms.append(("regex", Constraint.regex(self.regex)))
            if self.grammar is not None:
                forms.append(("grammar", Constraint.grammar(self.grammar)))
            if self.choice is not None:
                forms.append(("choice", Constraint.choice(self.choice)))
            forms += self.more_forms()
        except InvalidParameterError as error:
            raise ApiError("invalid", str(error), param="choice") from error
        if len(forms) > 1:
            names = " and ".join(name for name, _ in forms)
            raise ApiError("conflict", f"{names} exclude each other: give one.", param=forms[1][0])
        return forms[0][1] if forms else None

    def more_forms(self) -> list[tuple[str, Constraint]]:
        return []

    def _stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class JsonSchema(Body):
    name: str = ""
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(SamplingBody):
    """https://platform.openai.com/docs/api-reference/chat/create"""

    messages: Annotated[Items[JsonObject], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    tools: Items[JsonObject] | None = None
    tool_choice: Literal["auto", "none", "required"] | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: str | None = None
    """"none" asks a model that can do both not to think."""
    thinking: Thinking | None = None
    chat_template_kwargs: TemplateOptions | None = None
    functions: Items[JsonObject] | None = None
    function_call: Any = None
    modalities: Items[str] | None = None

    def sampling(self) -> dict[str, Any]:
        if self.functions is not None or self.function_call is not None:
            raise ApiError(
                "unsupported",
                "functions and function_call are OpenAI's old way: use tools and tool_choice.",
                param="functions",
            )
        if self.modalities not in (None, ["text"]):
            raise ApiError("unsupported", "These models answer in text only.", param="modalities")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError("invalid", "top_logprobs needs logprobs: true.", param="top_logprobs")
        values = super().sampling()
        if self.logprobs:
            values["logprobs"] = self.top_logprobs or 0
        return values

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def asks_for_thoughts(self) -> bool | None:
        """Whether the model shall think first; None leaves it to the model."""
        if self.chat_template_kwargs and self.chat_template_kwargs.enable_thinking is not None:
            return self.chat_template_kwargs.enable_thinking
        if self.thinking is not None:
            return self.thinking.type == "enabled"
        if self.reasoning_effort is not None:
            return self.reasoning_effort != "none"
        return None

    def more_forms(self) -> list[tuple[str, Constraint]]:
        form = self.response_format
        if form is None or form.type == "text":
            return []
        if form.type == "json_object":
            return [("response_format", Constraint.json_object())]
        if form.json_schema is None or form.json_schema.schema_ is None:
            raise ApiError(
                "missing",
                "response_format of type json_schema needs json_schema.schema.",
                param="response_format.json_schema.schema",
            )
        return [("response_format", Constraint.json_schema(form.json_schema.schema_))]


class CompletionBody(SamplingBody):
    """https://platform.openai.com/docs/api-reference/completions/create"""

    prompt: str | Items[str] | Items[int] | Items[Items[int]]
    max_tokens: Count | None = 16
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None

    def sampling(self) -> dict[str, Any]:
        if self.suffix:
            raise ApiError("unsupported", "Text is continued at its end only.", param="suffix")
        if self.echo and self.logprobs is not None:
            raise ApiError(
                "unsupported", "Log probabilities of a prompt are not told.", param="echo"
            )
        values = super().sampling()
        if self.logprobs is not None:
            values["logprobs"] = self.logprobs
        if self.best_of is not None:
            if self.stream:
                raise ApiError("conflict", "best_of cannot be streamed.", param="best_of")
            values["best_of"] = self.best_of
        return values

    @property
    def prompts(self) -> list[str | list[int]]:
        """Raises ApiError where there is none."""
        if self.prompt == []:
            raise ApiError("invalid", "There is no prompt; give at least one.", param="prompt")
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)  # type: ignore[arg-type]


class InfillBody(SamplingBody):
    """Ours, in the manner of completions."""

    prompt: str
    """With [MASK] for a few words, [sMASK] for a sentence, [gMASK] for all that follows."""
    method: InfillMethod = "auto"
    max_tokens: Count | None = 64
    """For each blank."""

    def sampling(self) -> dict[str, Any]:
        if self.n not in (None, 1):
            raise ApiError("unsupported", "A text is completed once: leave out n.", param="n")
        return super().sampling()


class EmbeddingBody(Body):
    """https://platform.openai.com/docs/api-reference/embeddings/create"""

    model: str
    input: (
        str
        | Annotated[Items[str], Field(max_length=_MAX_TEXTS)]
        | Items[int]
        | Annotated[Items[Items[int]], Field(max_length=_MAX_TEXTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.input, str):
            return [self.input]
        if self.input and isinstance(self.input[0], int):
            return [self.input]
        return list(self.input)  # type: ignore[arg-type]


class TokenizeBody(Body):
    """As vLLM's: a prompt, or messages with the tokens that the template adds."""

    model: str | None = None
    prompt: str | None = None
    messages: Items[JsonObject] | None = None
    tools: Items[JsonObject] | None = None
    allow_special: bool = False
    return_token_strs: bool = False


class DetokenizeBody(Body):
    model: str | None = None
    tokens: Items[int]


def _token_biases(given: dict[str, float] | None) -> dict[int, float] | None:
    if given is None:
        return None
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError as error:
        raise ApiError(
            "invalid", "The keys of logit_bias must be token ids.", param="logit_bias"
        ) from error
