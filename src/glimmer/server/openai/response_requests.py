"""What clients of OpenAI's Responses API send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from glimmer.engine import Constraint
from glimmer.server.bodies import Body, Count, Few, Items, JsonObject
from glimmer.server.errors import ApiError
from glimmer.server.openai.requests import SamplingBody
from glimmer.server.openai.response_items import to_messages
from glimmer.session import ToolChoice

_LOGPROBS = "message.output_text.logprobs"
# Each needs something that was kept from an earlier request.
_STATEFUL = ("previous_response_id", "conversation", "prompt")


class ReasoningOption(Body):
    effort: str | None = None
    """"none" asks a model that can do both not to think."""


class TextForm(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextOption(Body):
    format: TextForm | None = None


class ResponseBody(SamplingBody):
    """https://platform.openai.com/docs/api-reference/responses/create"""

    input: str | Annotated[Items[JsonObject], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    tools: Items[JsonObject] | None = None
    tool_choice: Literal["auto", "none", "required"] | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    text: TextOption | None = None
    reasoning: ReasoningOption | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Items[str] | None = None
    metadata: Annotated[dict[str, str], Few] | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None

    @property
    def ignored(self) -> list[str]:
        names = super().ignored
        if self.store:
            names.append("store")
        names += [f"include.{name}" for name in self.include or () if name != _LOGPROBS]
        for name, option in (("text", self.text), ("reasoning", self.reasoning)):
            names += [f"{name}.{field}" for field in (option.ignored if option else ())]
        return names

    def sampling(self) -> dict[str, Any]:
        self._refuse_what_needs_a_memory()
        values = super().sampling()
        if self.top_logprobs is not None or _LOGPROBS in (self.include or ()):
            values["logprobs"] = self.top_logprobs or 0
        return values

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_output_tokens or self.max_tokens

    @property
    def asks_for_thoughts(self) -> bool | None:
        """Whether the model shall think first; None leaves it to the model."""
        effort = self.reasoning.effort if self.reasoning is not None else None
        return None if effort is None else effort != "none"

    def messages(self) -> list[JsonObject]:
        """In the shape of chat completions; raises ApiError."""
        first: list[JsonObject] = []
        if self.instructions:
            first.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*first, {"role": "user", "content": self.input}]
        return first + to_messages(self.input)

    def functions(self) -> list[JsonObject] | None:
        """The tools in the shape of chat completions; raises ApiError."""
        if self.tools is None:
            return None
        return [
            {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
            for tool in self.checked_tools()
        ]

    def checked_tools(self) -> list[JsonObject]:
        """As they are told back; raises ApiError where one is no function."""
        found = []
        for i, tool in enumerate(self.tools or ()):
            kind = tool.get("type")
            if kind != "function":
                raise ApiError(
                    "unsupported",
                    f"tools[{i}] is of type {kind!r:.40}. Only functions of your own are offered "
                    "here: what runs at OpenAI, or takes no JSON, is not.",
                    param=f"tools[{i}].type",
                )
            if not isinstance(tool.get("name"), str) or not tool["name"]:
                raise ApiError("missing", f"tools[{i}] has no name.", param=f"tools[{i}].name")
            known: JsonObject = {
                k: tool[k] for k in ("name", "description", "parameters") if k in tool
            }
            found.append({"type": "function", **known})
        return found

    def chosen_tool(self) -> ToolChoice:
        """Raises ApiError."""
        choice = self.tool_choice
        if choice is None or isinstance(choice, str):
            return choice or "auto"
        if choice.get("type") != "function":
            raise ApiError(
                "unsupported",
                "tool_choice must be auto, none, required or "
                '{"type": "function", "name": ...} here, but its type is '
                f"{choice.get('type')!r:.40}.",
                param="tool_choice",
            )
        function: JsonObject = {"name": choice.get("name")}
        return {"type": "function", "function": function}

    def more_forms(self) -> list[tuple[str, Constraint]]:
        form = self.text.format if self.text is not None else None
        if form is None or form.type == "text":
            return []
        if form.type == "json_object":
            return [("text.format", Constraint.json_object())]
        if form.schema_ is None:
            raise ApiError(
                "missing",
                "text.format of type json_schema needs schema.",
                param="text.format.schema",
            )
        return [("text.format", Constraint.json_schema(form.schema_))]

    def _refuse_what_needs_a_memory(self) -> None:
        for name in _STATEFUL:
            if getattr(self, name) is not None:
                raise ApiError(
                    "unsupported",
                    f"{name} is not offered: this server keeps nothing of a request. Send all that "
                    "the model shall know as input.",
                    param=name,
                )
        if self.background:
            raise ApiError(
                "unsupported",
                "background is not offered: this server keeps no answer to be fetched later. "
                "Wait for it, or stream.",
                param="background",
            )
        if self.truncation not in (None, "disabled"):
            raise ApiError(
                "unsupported",
                "truncation must be disabled: no message is left out here.",
                param="truncation",
            )
