"""/v1/responses: a conversation in items. Nothing of it is kept: each request brings all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from glimmer.chat import ToolCallStart
from glimmer.outputs import RequestOutput
from glimmer.server import shape
from glimmer.server.bodies import JsonObject
from glimmer.server.errors import ApiError
from glimmer.server.jobs import ChatJob
from glimmer.server.json_body import JsonRoute
from glimmer.server.openai import response_items as items
from glimmer.server.openai.replies import documented
from glimmer.server.openai.response_replies import ResponseReply, ended, head, status_of
from glimmer.server.openai.response_requests import ResponseBody
from glimmer.server.parts import PartDelta, PartEnd, PartKind, Parts, PartStart
from glimmer.server.service import Streaming
from glimmer.server.sse import event, while_connected
from glimmer.server.web import ResponsesCaller, ServiceOf, event_stream, notes, request_id
from glimmer.tokenizers import Tokenizer

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/responses", responses=documented(ResponseReply, streams=True))
async def create_response(
    request: Request, body: ResponseBody, service: ServiceOf, caller: ResponsesCaller
) -> Response:
    """Answer a conversation, with tools, at once or as it comes. Nothing is stored: there is no
    previous_response_id, and no response can be fetched later."""
    job = ChatJob(
        model=body.model,
        sampling=body.sampling(),
        priority=body.priority,
        adapter=body.adapter,
        messages=body.messages(),
        tools=body.functions(),
        tool_choice=body.chosen_tool(),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        thinking=body.asks_for_thoughts,
    )
    name = request_id(request)
    response = head(body, name)
    if not body.stream:
        done = await while_connected(request, service.complete(job, caller))
        (output,) = done.outputs
        logprobs: list[JsonObject] = []
        if output.logprobs is not None:
            logprobs = shape.logprobs(output, done.model.model.tokenizer)
        told = items.output_items(output, name, status_of(output), logprobs)
        return JSONResponse(
            {**response, **ended(output, told, done.usage)},
            headers=notes(body.ignored, output.notes),
        )
    streaming = await service.stream(job, caller)
    return event_stream(
        service, _events(streaming, response, name), streaming.aclose, notes(body.ignored)
    )


async def _events(streaming: Streaming, response: JsonObject, name: str) -> AsyncIterator[bytes]:
    events = _Events()
    told = _Items(events, name, streaming.model.model.tokenizer)
    yield events.make("response.created", response=response)
    yield events.make("response.in_progress", response=response)
    try:
        async for output in streaming:
            for one in told.add(output):
                yield one
            if output.finish_reason is not None:
                end = ended(output, told.done, streaming.totals.usage)
                yield events.make(f"response.{end['status']}", response={**response, **end})
    except ApiError as error:
        is_theirs = error.kind in ("invalid", "context_length")
        code = "invalid_prompt" if is_theirs else "server_error"
        failed = {"status": "failed", "error": {"code": code, "message": error.message}}
        yield events.make("response.failed", response={**response, **failed, "output": told.done})


class _Events:
    """Numbers them."""

    def __init__(self) -> None:
        self._count = 0

    def make(self, kind: str, **values: Any) -> bytes:
        made = event({"type": kind, "sequence_number": self._count, **values}, kind)
        self._count += 1
        return made


class _Items:
    """Makes events of an answer's items."""

    def __init__(self, events: _Events, name: str, tokenizer: Tokenizer) -> None:
        self.done: list[JsonObject] = []
        """Those that are complete, as they were told."""
        self._events = events
        self._name = name
        self._tokenizer = tokenizer
        self._parts = Parts()
        self._kind: PartKind = "text"
        self._text = ""
        self._item: JsonObject = {}
        """The one that is open."""
        self._num_logprobs = 0
        self._new_logprobs: list[JsonObject] = []
        self._logprobs: list[JsonObject] = []

    def add(self, output: RequestOutput) -> Iterator[bytes]:
        if output.logprobs is not None:
            # Of all tokens, as for chat completions: thoughts and calls are not told apart.
            self._new_logprobs += shape.logprobs(output, self._tokenizer, self._num_logprobs)
            self._num_logprobs = len(output.logprobs)
        parts = list(self._parts.add(output))
        is_over = output.finish_reason is not None
        if is_over and not parts and not self.done:
            parts = [PartStart("text"), PartEnd()]  # it said nothing, in one message
        for i, part in enumerate(parts):
            match part:
                case PartStart(kind, call):
                    yield from self._start(kind, call)
                case PartDelta(text):
                    self._text += text
                    yield self._delta(text)
                case PartEnd():
                    is_last = is_over and i == len(parts) - 1
                    yield from self._end(status_of(output) if is_last else "completed")

    def _start(self, kind: PartKind, call: ToolCallStart | None) -> Iterator[bytes]:
        self._kind, self._text, self._logprobs = kind, "", []
        number = len(self.done)
        if call is not None:
            self._item = items.call_item(f"fc_{self._name}_{number}", call.id, call.name, "")
        elif kind == "thought":
            self._item = items.reasoning_item(f"rs_{self._name}_{number}", None)
        else:
            self._item = items.message_item(f"msg_{self._name}_{number}", None)
        item = {**self._item, "status": "in_progress"}
        yield self._events.make("response.output_item.added", output_index=number, item=item)
        if kind != "call":
            yield self._make("response.content_part.added", content_index=0, part=self._part())

    def _delta(self, text: str) -> bytes:
        if self._kind == "call":
            return self._make("response.function_call_arguments.delta", delta=text)
        if self._kind == "thought":
            return self._make("response.reasoning_text.delta", content_index=0, delta=text)
        logprobs, self._new_logprobs = self._new_logprobs, []
        self._logprobs += logprobs
        return self._make(
            "response.output_text.delta", content_index=0, delta=text, logprobs=logprobs
        )

    def _end(self, status: str) -> Iterator[bytes]:
        if self._kind == "call":
            self._item["arguments"] = self._text
            yield self._make("response.function_call_arguments.done", arguments=self._text)
        elif self._kind == "thought":
            yield self._make("response.reasoning_text.done", content_index=0, text=self._text)
        else:
            self._logprobs += self._new_logprobs
            self._new_logprobs = []
            yield self._make(
                "response.output_text.done",
                content_index=0,
                text=self._text,
                logprobs=self._logprobs,
            )
        if self._kind != "call":
            self._item["content"] = [self._part()]
            yield self._make("response.content_part.done", content_index=0, part=self._part())
        item = {**self._item, "status": status}
        number = len(self.done)
        self.done.append(item)
        yield self._events.make("response.output_item.done", output_index=number, item=item)

    def _part(self) -> JsonObject:
        if self._kind == "thought":
            return items.reasoning_part(self._text)
        return items.text_part(self._text, self._logprobs)

    def _make(self, kind: str, **values: Any) -> bytes:
        place = {"item_id": self._item["id"], "output_index": len(self.done)}
        return self._events.make(kind, **place, **values)
