"""What clients of the BigModel platform send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from glimmer.engine import Constraint
from glimmer.server.bodies import Body, Items, JsonObject
from glimmer.server.errors import ApiError
from glimmer.server.openai.requests import SamplingBody

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


class ChatBody(SamplingBody):
    """https://docs.bigmodel.cn/api-reference, with what `zai-sdk` sends, and OpenAI's other fields.
    ``stop`` may hold several texts here; the platform takes one."""

    messages: Annotated[Items[JsonObject], Field(min_length=1)]
    request_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    user_id: str | None = None
    do_sample: bool | None = None
    tools: Items[JsonObject] | None = None
    tool_choice: Literal["auto", "none", "required"] | JsonObject | None = None
    tool_stream: bool | None = None
    response_format: FormOption | None = None
    thinking: ThinkingOption | None = None
    reasoning_effort: str | None = None

    def sampling(self) -> dict[str, Any]:
        values = super().sampling()
        return values if self.do_sample is not False else {**values, "temperature": 0.0}

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

    def more_forms(self) -> list[tuple[str, Constraint]]:
        form = self.response_format
        if form is None or form.type == "text":
            return []
        if form.type == "json_object":
            return [("response_format", Constraint.json_object())]
        schema = (form.json_schema or {}).get("schema", form.json_schema)
        if not isinstance(schema, dict):
            raise ApiError(
                "missing",
                "response_format of type json_schema needs json_schema.",
                param="response_format",
            )
        return [("response_format", Constraint.json_schema(schema))]
