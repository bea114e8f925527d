"""/v1/messages, whole or as events, and the tokens that one would take."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from glimmer.chat import ToolCallStart
from glimmer.errors import GlimmerError
from glimmer.outputs import RequestOutput
from glimmer.server import jobs
from glimmer.server.anthropic import replies
from glimmer.server.anthropic.errors import render
from glimmer.server.anthropic.replies import CountReply, MessageReply, documented
from glimmer.server.anthropic.requests import CountBody, MessageBody
from glimmer.server.errors import ApiError
from glimmer.server.jobs import ChatJob
from glimmer.server.json_body import JsonRoute
from glimmer.server.parts import PartDelta, PartEnd, PartKind, Parts, PartStart
from glimmer.server.service import Streaming
from glimmer.server.sse import event, while_connected
from glimmer.server.web import ChatCaller, ServiceOf, event_stream, notes, request_id

router = APIRouter(route_class=JsonRoute, tags=["Anthropic"])


@router.post("/v1/messages", responses=documented(MessageReply, streams=True))
async def create_message(
    request: Request, body: MessageBody, service: ServiceOf, caller: ChatCaller
) -> Response:
    """Answer a conversation, with tools, at once or as it comes."""
    job = ChatJob(
        model=body.model,
        sampling=body.sampling(),
        priority=body.priority,
        adapter=body.adapter,
        messages=body.turns(),
        tools=body.own_tools(),
        tool_choice=body.choice(),
        parallel_tool_calls=not body.one_call,
        thinking=body.asks_for_thoughts,
    )
    head = {
        "id": f"msg_{request_id(request)}",
        "type": "message",
        "role": "assistant",
        "model": body.model,
    }
    # Anthropic's clients read the id of the request from a header of this name.
    headers = {"request-id": request_id(request)}
    if not body.stream:
        done = await while_connected(request, service.complete(job, caller))
        (output,) = done.outputs
        content, told = replies.blocks(output), replies.usage(done.usage)
        return JSONResponse(
            {**head, "content": content, **replies.stop(output, body.max_tokens), "usage": told},
            headers={**headers, **notes(body.ignored, output.notes)},
        )
    streaming = await service.stream(job, caller)
    return event_stream(
        service,
        _events(streaming, head, body, request_id(request)),
        streaming.aclose,
        {**headers, **notes(body.ignored)},
    )


@router.post("/v1/messages/count_tokens", responses=documented(CountReply))
async def count_tokens(
    request: Request, body: CountBody, service: ServiceOf, caller: ChatCaller
) -> Response:
    """The tokens of a request, with what the template adds."""
    turns, tools = body.turns(), body.own_tools()
    if body.choice() == "none":
        tools = None  # they are not shown to the model then
    thinking = body.asks_for_thoughts
    async with service.pool.use(service.resolve(body.model, caller)) as llm:
        template = llm.model.chat_template
        try:
            ids = await anyio.to_thread.run_sync(
                lambda: template.encode(turns, tools, thinking=thinking)
            )
        except GlimmerError as error:
            raise jobs.refusal(error) from error
    return JSONResponse(
        {"input_tokens": len(ids)},
        headers={"request-id": request_id(request), **notes(body.ignored)},
    )


async def _events(
    streaming: Streaming, head: dict[str, Any], body: MessageBody, name: str
) -> AsyncIterator[bytes]:
    blocks = _Blocks(body.eager_tools)
    is_started = False
    try:
        async for output in streaming:
            if not is_started:
                # With the first output, for that is when the cached tokens are known.
                is_started = True
                message = {**head, "content": [], "stop_reason": None, "stop_sequence": None}
                message["usage"] = {**replies.usage(output.usage), "output_tokens": 0}
                yield _event("message_start", message=message)
                yield _event("ping")
            for told in blocks.add(output):
                yield told
            if output.finish_reason is not None:
                delta = replies.stop(output, body.max_tokens)
                yield _event("message_delta", delta=delta, usage=replies.usage(output.usage))
    except ApiError as error:
        yield event(render(error, name)[1], "error")
    else:
        yield _event("message_stop")


class _Blocks:
    """Makes events of blocks."""

    def __init__(self, eager_tools: frozenset[str]) -> None:
        self._eager_tools = eager_tools
        self._parts = Parts()
        self._index = -1
        self._kind: PartKind = "text"
        self._is_eager = False
        self._arguments = ""
        """Of a call, to be checked before they are told."""

    def add(self, output: RequestOutput) -> Iterator[bytes]:
        for part in self._parts.add(output):
            match part:
                case PartStart(kind, call):
                    self._index += 1
                    self._kind = kind
                    yield self._start(call)
                case PartDelta(text) if self._kind == "call" and not self._is_eager:
                    self._arguments += text
                case PartDelta(text):
                    yield self._delta(text)
                case PartEnd():
                    yield from self._end()

    def _start(self, call: ToolCallStart | None) -> bytes:
        block: dict[str, Any] = {"type": "text", "text": ""}
        if call is not None:
            self._is_eager, self._arguments = call.name in self._eager_tools, ""
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        elif self._kind == "thought":
            block = {"type": "thinking", "thinking": "", "signature": ""}
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, text: str) -> bytes:
        kind, key = _DELTAS[self._kind]
        return _event("content_block_delta", index=self._index, delta={"type": kind, key: text})

    def _end(self) -> Iterator[bytes]:
        if self._kind == "thought":
            delta = {"type": "signature_delta", "signature": replies.SIGNATURE}
            yield _event("content_block_delta", index=self._index, delta=delta)
        if self._kind == "call" and not self._is_eager:
            yield self._delta(json.dumps(replies.tool_input(self._arguments), ensure_ascii=False))
        yield _event("content_block_stop", index=self._index)


_DELTAS: dict[PartKind, tuple[str, str]] = {
    "thought": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


def _event(kind: str, **values: Any) -> bytes:
    return event({"type": kind, **values}, kind)
