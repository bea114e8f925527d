"""What clients of the BigModel platform send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from glimmer.engine import Constraint
from glimmer.errors import InvalidParameterError
from glimmer.server.bodies import Body, Count, Items, JsonObject, Stop
from glimmer.server.errors import ApiError

_SERVICES = {
    "web_search": "searches the web",
    "retrieval": "reads knowledge bases",
    "mcp": "calls servers elsewhere",
    "code_interpreter": "runs code",
    "drawing_tool": "draws pictures",
    "web_browser": "reads the web",
}


class ThinkingOption(Body):
    type: Literal["enabled", "disabled"]
    clear_thinking: bool | None = None


class FormOption(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonObject | None = None


class ChatBody(Body):
    """https://docs.bigmodel.cn/api-reference, with what `zai-sdk` sends; OpenAI's extra fields may
    be added. ``stop`` may hold several texts here; the platform takes one."""

    model: str
    messages: Annotated[Items[JsonObject], Field(min_length=1)]
    request_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    user_id: str | None = None
    do_sample: bool | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Count | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[Items[Stop], Field(max_length=16)] | None = None
    tools: Items[JsonObject] | None = None
    tool_choice: Literal["auto", "none", "required"] | JsonObject | None = None
    tool_stream: bool | None = None
    response_format: FormOption | None = None
    thinking: ThinkingOption | None = None
    reasoning_effort: str | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 30)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    loop_guard: bool | None = None

    def sampling(self) -> dict[str, Any]:
        """Values of SamplingParams; raises ApiError."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        values: dict[str, Any] = {
            "temperature": 0.0 if self.do_sample is False else self.temperature,
            "top_p": max(self.top_p, 1e-9) if self.top_p is not None else None,
            "max_new_tokens": self.max_tokens,
            "seed": self.seed % 2**64 if self.seed is not None else None,
            "stop": tuple(s for s in stops if s) or None,
            "top_k": max(self.top_k, 0) if self.top_k is not None else None,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "loop_guard": self.loop_guard,
            "constraint": self._constraint(),
        }
        return {name: value for name, value in values.items() if value is not None}

    def own_tools(self) -> list[JsonObject] | None:
        """The functions that are offered.

        Raises:
            ApiError: a tool that is a service of the platform.
        """
        for tool in self.tools or ():
            kind = tool.get("type")
            if isinstance(kind, str) and kind in _SERVICES:
                raise ApiError(
                    "unsupported",
                    f"The tool {kind!r} {_SERVICES[kind]} on the hosted platform. Nothing leaves "
                    "this machine, so it is not offered here: leave it out, or offer a function "
                    "of your own that does it.",
                    param="tools",
                )
        return self.tools

    @property
    def asks_for_thoughts(self) -> bool | None:
        if self.thinking is not None:
            return self.thinking.type == "enabled"
        if self.reasoning_effort is not None:
            return self.reasoning_effort != "none"
        return None

    def _constraint(self) -> Constraint | None:
        form = self.response_format
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return Constraint.json_object()
        schema = (form.json_schema or {}).get("schema", form.json_schema)
        if not isinstance(schema, dict):
            raise ApiError(
                "missing",
                "response_format of type json_schema needs json_schema.",
                param="response_format",
            )
        try:
            return Constraint.json_schema(schema)
        except InvalidParameterError as error:
            raise ApiError("invalid", str(error), param="response_format") from error
