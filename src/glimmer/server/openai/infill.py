"""/v1/infill: the blanks of a text are filled. OpenAI has no such route: it is in their manner."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from glimmer.infilling import BlankText, read_blanks
from glimmer.outputs import RequestOutput
from glimmer.server import shape
from glimmer.server.errors import ApiError
from glimmer.server.jobs import InfillJob
from glimmer.server.json_body import JsonRoute
from glimmer.server.openai.errors import render
from glimmer.server.openai.replies import Infilling, documented
from glimmer.server.openai.requests import InfillBody
from glimmer.server.service import Streaming
from glimmer.server.sse import DONE, event, while_connected
from glimmer.server.web import CompletionsCaller, ServiceOf, event_stream, notes, request_id
from glimmer.tokenizers import Tokenizer

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/infill", responses=documented(Infilling, streams=True))
async def create_infilling(
    request: Request, body: InfillBody, service: ServiceOf, caller: CompletionsCaller
) -> Response:
    """Fill the blanks of a text, one after another."""
    job = InfillJob(
        model=body.model,
        sampling=body.sampling(),
        priority=body.priority,
        adapter=body.adapter,
        text=body.prompt,
        method=body.method,
    )
    head = {
        "id": f"infl-{request_id(request)}",
        "object": "text_infilling",
        "created": int(time.time()),
        "model": body.model,
    }
    if not body.stream:
        done = await while_connected(request, service.complete(job, caller))
        model = done.model.model
        choice = _whole(read_blanks(body.prompt, model), done.outputs, model.tokenizer)
        reply = {**head, "choices": [choice], "usage": shape.usage(done.usage)}
        return JSONResponse(reply, headers=notes(body.ignored))
    streaming = await service.stream(job, caller)
    return event_stream(
        service, _events(streaming, head, body), streaming.aclose, notes(body.ignored)
    )


async def _events(
    streaming: Streaming, head: dict[str, Any], body: InfillBody
) -> AsyncIterator[bytes]:
    """What the text is going on with, event by event; the last has the fills by themselves."""
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    if wants_usage:
        head = {**head, "usage": None}
    model = streaming.model.model
    text = read_blanks(body.prompt, model)
    fills: dict[int, RequestOutput] = {}
    shown = 0
    try:
        async for output in streaming:
            fills[output.index] = output
            so_far = text.completed(list(fills.values()), model.tokenizer)
            if len(so_far) > shown:
                choice = {"index": 0, "text": so_far[shown:], "finish_reason": None}
                yield event({**head, "choices": [choice]})
                shown = len(so_far)
    except ApiError as error:
        yield event(render(error)[1])
    else:
        whole = _whole(text, list(fills.values()), model.tokenizer)
        yield event({**head, "choices": [{**whole, "text": ""}]})
        if wants_usage:
            usage = shape.usage(streaming.totals.usage)
            yield event({**head, "choices": [], "usage": usage})
    yield DONE


def _whole(text: BlankText, fills: list[RequestOutput], tokenizer: Tokenizer) -> dict[str, Any]:
    reasons = [shape.finish_reason(fill) for fill in fills]
    told: list[dict[str, Any]] = []
    for blank, fill, reason in zip(text.blanks, fills, reasons, strict=True):
        told.append({"blank": blank, "text": fill.text, "finish_reason": reason})
        if fill.finish_reason == "repetition":
            told[-1]["stop_reason"] = "repetition"
    return {
        "index": 0,
        "text": text.completed(fills, tokenizer),
        "fills": told,
        "finish_reason": next((reason for reason in reasons if reason != "stop"), "stop"),
    }
