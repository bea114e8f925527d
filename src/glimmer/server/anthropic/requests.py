"""What Anthropic's clients send. Fields that are not here are accepted and named in a header of the
answer; so are those that are here but cannot be followed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from glimmer.engine import Constraint
from glimmer.errors import InvalidParameterError
from glimmer.server.anthropic.turns import MessageParam, system_text, to_messages
from glimmer.server.bodies import MAX_STOP_CHARS, Body, Count, Items, JsonObject
from glimmer.server.errors import ApiError
from glimmer.session import ToolChoice


class ThinkingOption(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None
    display: str | None = None


class ToolParam(Body):
    name: Annotated[str, Field(min_length=1)] = ""
    """Checked with the type: a tool of Anthropic's may have none."""
    type: str | None = None
    description: str | None = None
    input_schema: JsonObject | None = None
    eager_input_streaming: bool | None = None


class ChoiceParam(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class FormOption(Body):
    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputOption(Body):
    effort: str | None = None
    format: FormOption | None = None


class CountBody(Body):
    """https://docs.anthropic.com/en/api/messages-count-tokens"""

    model: str
    messages: Annotated[Items[MessageParam], Field(min_length=1)]
    system: str | Items[JsonObject] | None = None
    tools: Items[ToolParam] | None = None
    tool_choice: ChoiceParam | None = None
    thinking: ThinkingOption | None = None
    output_config: OutputOption | None = None

    @property
    def ignored(self) -> list[str]:
        names = super().ignored
        if self.thinking is not None and self.thinking.budget_tokens is not None:
            names.append("thinking.budget_tokens")
        if self.thinking is not None and self.thinking.display is not None:
            names.append("thinking.display")
        if self.output_config is not None and self.output_config.effort is not None:
            names.append("output_config.effort")
        return names

    @property
    def asks_for_thoughts(self) -> bool | None:
        """None leaves it to the model. Who does not speak of it gets no thought: most programs
        take the first block of an answer for its text."""
        if self.thinking is None:
            return False
        return {"enabled": True, "disabled": False, "adaptive": None}[self.thinking.type]

    def turns(self) -> list[JsonObject]:
        """In OpenAI's shape; raises ApiError."""
        system = system_text(self.system)
        first = [{"role": "system", "content": system}] if system else []
        return first + to_messages(self.messages)

    def own_tools(self) -> list[JsonObject] | None:
        """The functions that are offered, in OpenAI's shape; raises ApiError."""
        if self.tools is None:
            return None
        return [_function(f"tools.{i}", tool) for i, tool in enumerate(self.tools)]

    def choice(self) -> ToolChoice:
        """Raises ApiError."""
        choice = self.tool_choice
        if choice is None or choice.type == "auto":
            return "auto"
        if choice.type == "none":
            return "none"
        if not self.tools:
            raise ApiError(
                "invalid", f"tool_choice of type {choice.type} needs tools.", param="tool_choice"
            )
        if choice.type == "any":
            return "required"
        if choice.name is None:
            raise ApiError(
                "missing", "tool_choice of type tool needs a name.", param="tool_choice.name"
            )
        return {"type": "function", "function": {"name": choice.name}}


class MessageBody(CountBody):
    """https://docs.anthropic.com/en/api/messages, and a few fields more of ours."""

    max_tokens: Count
    stream: bool | None = None
    metadata: JsonObject | None = None
    """Whose user asks: nothing is done with it."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 30)] | None = None
    stop_sequences: (
        Annotated[
            Items[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]],
            Field(max_length=16),
        ]
        | None
    ) = None

    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Lower is sooner."""
    adapter: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """The name of one that the server has loaded for the model."""
    loop_guard: bool | None = None

    def sampling(self) -> dict[str, Any]:
        """Values of SamplingParams; raises ApiError."""
        values: dict[str, Any] = {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            # A nucleus of nothing still holds the likeliest token.
            "top_p": max(self.top_p, 1e-9) if self.top_p is not None else None,
            "top_k": self.top_k,
            "stop": tuple(self.stop_sequences) if self.stop_sequences else None,
            "seed": self.seed % 2**64 if self.seed is not None else None,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "loop_guard": self.loop_guard,
            "constraint": self._constraint(),
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def one_call(self) -> bool:
        """Whether at most one tool may be called at once."""
        return self.tool_choice is not None and bool(self.tool_choice.disable_parallel_tool_use)

    @property
    def eager_tools(self) -> frozenset[str]:
        """Those whose input is wanted as it is written, JSON or not."""
        return frozenset(t.name for t in self.tools or () if t.eager_input_streaming)

    def _constraint(self) -> Constraint | None:
        form = self.output_config.format if self.output_config is not None else None
        if form is None:
            return None
        try:
            return Constraint.json_schema(form.schema_)
        except InvalidParameterError as error:
            raise ApiError("invalid", str(error), param="output_config.format") from error


def _function(where: str, tool: ToolParam) -> JsonObject:
    if tool.type not in (None, "custom"):
        raise ApiError(
            "unsupported",
            f"The tool type {tool.type!r:.60} is Anthropic's own: its servers run it, or only its "
            "models know it. It is not offered here: leave it out, or offer one of your own with "
            "name, description and input_schema.",
            param=where,
        )
    for name in ("name", "input_schema"):
        if not getattr(tool, name) and getattr(tool, name) != {}:
            raise ApiError("missing", f"The field {where}.{name} is missing.", param=where)
    function: JsonObject = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.input_schema
    return {"type": "function", "function": function}
