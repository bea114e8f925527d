"""/v1/chat/completions"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from glimmer.server import shape
from glimmer.server.errors import ApiError
from glimmer.server.jobs import ChatJob
from glimmer.server.json_body import JsonRoute
from glimmer.server.openai.errors import render
from glimmer.server.openai.replies import ChatCompletion, documented
from glimmer.server.openai.requests import ChatBody
from glimmer.server.service import Streaming
from glimmer.server.sse import DONE, event, while_connected
from glimmer.server.web import ChatCaller, ServiceOf, event_stream, notes, request_id

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/chat/completions", responses=documented(ChatCompletion, streams=True))
async def create_chat_completion(
    request: Request, body: ChatBody, service: ServiceOf, caller: ChatCaller
) -> Response:
    """Answer a conversation, with tools, at once or as it comes."""
    job = ChatJob(
        model=body.model,
        sampling=body.sampling(),
        priority=body.priority,
        adapter=body.adapter,
        messages=body.messages,
        tools=body.tools,
        tool_choice=body.tool_choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        thinking=body.asks_for_thoughts,
    )
    head = {
        "id": f"chatcmpl-{request_id(request)}",
        "created": int(time.time()),
        "model": body.model,
    }
    if not body.stream:
        done = await while_connected(request, service.complete(job, caller))
        choices = []
        for output in done.outputs:
            choice = {
                "index": output.choice,
                "message": shape.message(output),
                "finish_reason": shape.finish_reason(output),
                "logprobs": None,
            }
            if output.finish_reason == "repetition":
                choice["stop_reason"] = "repetition"
            if output.logprobs is not None:
                content = shape.logprobs(output, done.model.model.tokenizer)
                choice["logprobs"] = {"content": content, "refusal": None}
            choices.append(choice)
        reply = {**head, "object": "chat.completion", "choices": choices}
        return JSONResponse(
            {**reply, "usage": shape.usage(done.usage)},
            headers=notes(body.ignored, done.outputs[0].notes),
        )
    streaming = await service.stream(job, caller)
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    return event_stream(
        service,
        _events(streaming, {**head, "object": "chat.completion.chunk"}, wants_usage),
        streaming.aclose,
        notes(body.ignored),
    )


async def _events(
    streaming: Streaming, head: dict[str, Any], wants_usage: bool
) -> AsyncIterator[bytes]:
    if wants_usage:
        head = {**head, "usage": None}
    tokenizer = streaming.model.model.tokenizer
    told_logprobs: dict[int, int] = {}

    def chunk(choice: dict[str, Any]) -> bytes:
        return event({**head, "choices": [choice]})

    try:
        async for output in streaming:
            index = output.choice
            if index not in told_logprobs:
                told_logprobs[index] = 0
                first = {"role": "assistant", "content": ""}
                yield chunk({"index": index, "delta": first, "finish_reason": None})
            told = None
            if output.logprobs is not None:
                content = shape.logprobs(output, tokenizer, told_logprobs[index])
                told_logprobs[index] = len(output.logprobs)
                told = {"content": content, "refusal": None} if content else None
            for delta in shape.deltas(output):
                choice = {"index": index, "delta": delta, "finish_reason": None}
                if told is not None:
                    choice["logprobs"], told = told, None
                yield chunk(choice)
            if output.finish_reason is not None:
                choice = {
                    "index": index,
                    "delta": {},
                    "finish_reason": shape.finish_reason(output),
                }
                if told is not None:
                    choice["logprobs"] = told
                if output.finish_reason == "repetition":
                    choice["stop_reason"] = "repetition"
                yield chunk(choice)
            elif told is not None:  # a token that is not a whole character yet
                choice = {"index": index, "delta": {}, "finish_reason": None, "logprobs": told}
                yield chunk(choice)
    except ApiError as error:
        yield event(render(error)[1])
    else:
        if wants_usage:
            usage = shape.usage(streaming.totals.usage)
            yield event({**head, "choices": [], "usage": usage})
    yield DONE
