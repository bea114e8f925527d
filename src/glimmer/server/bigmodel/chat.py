"""chat/completions: at once, as it comes, or to be fetched later."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from glimmer.outputs import RequestOutput
from glimmer.server import shape
from glimmer.server.access import Caller
from glimmer.server.bigmodel.errors import render
from glimmer.server.bigmodel.replies import ChatReply, documented
from glimmer.server.bigmodel.requests import ChatBody
from glimmer.server.errors import ApiError
from glimmer.server.jobs import ChatJob
from glimmer.server.json_body import JsonRoute
from glimmer.server.service import Completed, Service, Streaming
from glimmer.server.sse import DONE, event, while_connected
from glimmer.server.web import ChatCaller, ServiceOf, event_stream, notes, request_id

PREFIX = "/api/paas/v4"
router = APIRouter(route_class=JsonRoute)


@router.post("/chat/completions", responses=documented(ChatReply, streams=True))
async def create_chat_completion(
    request: Request, body: ChatBody, service: ServiceOf, caller: ChatCaller
) -> Response:
    """Answer a conversation, with tools, at once or as it comes."""
    job = to_job(body)
    head = make_head(body, request_id(request), body.request_id or request_id(request))
    if not body.stream:
        with live_request(service, caller, body.request_id):
            done = await while_connected(request, service.complete(job, caller))
        return JSONResponse(
            {**head, **reply(done)}, headers=notes(body.ignored, done.outputs[0].notes)
        )
    guard = live_request(service, caller, body.request_id)
    guard.__enter__()

    def release() -> None:
        guard.__exit__(None, None, None)

    try:
        streaming = await service.stream(job, caller)
    except BaseException:
        release()
        raise

    async def close() -> None:
        release()
        await streaming.aclose()

    events = _events(streaming, head, bool(body.tool_stream), release)
    return event_stream(service, events, close, notes(body.ignored))


def to_job(body: ChatBody) -> ChatJob:
    """Raises ApiError."""
    return ChatJob(
        model=body.model,
        sampling=body.sampling(),
        priority=body.priority,
        adapter=body.adapter,
        messages=body.messages,
        tools=body.own_tools(),
        tool_choice=body.tool_choice or "auto",
        thinking=body.asks_for_thoughts,
    )


def make_head(body: ChatBody, task_id: str, name: str) -> dict[str, Any]:
    return {
        "id": task_id,
        "request_id": name,
        "created": int(time.time()),
        "model": body.model,
    }


def reply(done: Completed) -> dict[str, Any]:
    choices = [
        {
            "index": output.choice,
            "finish_reason": shape.finish_reason(output),
            "message": shape.message(output),
        }
        for output in done.outputs
    ]
    return {"choices": choices, "usage": shape.usage(done.usage)}


@contextmanager
def live_request(service: Service, caller: Caller, name: str | None) -> Iterator[None]:
    """Holds a request id; the same caller cannot use it meanwhile. Only one that the body gives:
    several requests may share the header of a trace.

    Raises:
        ApiError: it is in use.
    """
    if name is None:
        yield
        return
    live = (caller.key_id, name)
    if live in service.live_requests:
        raise ApiError(
            "duplicate_request",
            f"A request with the request_id {name!r} is under way. Give each its own.",
            param="request_id",
        )
    service.live_requests.add(live)
    try:
        yield
    finally:
        service.live_requests.discard(live)


async def _events(
    streaming: Streaming, head: dict[str, Any], streams_tools: bool, release: Callable[[], None]
) -> AsyncIterator[bytes]:
    def chunk(output: RequestOutput, delta: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": output.choice, "delta": {"role": "assistant", **delta}}
        return event({**head, "choices": [{**choice, **more}]})

    try:
        async for output in streaming:
            for delta in shape.deltas(output):
                if streams_tools or "tool_calls" not in delta:
                    yield chunk(output, delta)
            if output.finish_reason is None:
                continue
            if output.tool_calls and not streams_tools:
                # Whole calls, as the platform tells them unless tool_stream asks for pieces.
                yield chunk(output, {"tool_calls": shape.message(output)["tool_calls"]})
            reason = shape.finish_reason(output)
            last = {**head, "usage": shape.usage(streaming.totals.usage)}
            choice = {
                "index": output.choice,
                "finish_reason": reason,
                "delta": {"role": "assistant", "content": ""},
            }
            yield event({**last, "choices": [choice]})
    except ApiError as error:
        yield event(render(error)[1])
    release()  # whoever reads the end may use the id again
    yield DONE
