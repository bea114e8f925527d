"""/v1/completions: text is continued as it stands."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from glimmer.outputs import RequestOutput
from glimmer.server import shape
from glimmer.server.errors import ApiError
from glimmer.server.jobs import TextJob
from glimmer.server.json_body import JsonRoute
from glimmer.server.openai.errors import render
from glimmer.server.openai.replies import Completion, documented
from glimmer.server.openai.requests import CompletionBody
from glimmer.server.service import Streaming
from glimmer.server.sse import DONE, event, while_connected
from glimmer.server.web import CompletionsCaller, ServiceOf, event_stream, notes, request_id
from glimmer.tokenizers import Tokenizer

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/completions", responses=documented(Completion, streams=True))
async def create_completion(
    request: Request, body: CompletionBody, service: ServiceOf, caller: CompletionsCaller
) -> Response:
    """Continue one text or several."""
    job = TextJob(
        model=body.model,
        sampling=body.sampling(),
        priority=body.priority,
        adapter=body.adapter,
        prompts=body.prompts,
    )
    head = {
        "id": f"cmpl-{request_id(request)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
    }
    count = body.n or 1
    if not body.stream:
        done = await while_connected(request, service.complete(job, caller))
        tokenizer = done.model.model.tokenizer
        choices = [
            _choice(output, count, _echo(body, output.index, tokenizer) + output.text, tokenizer)
            for output in done.outputs
        ]
        reply = {**head, "choices": choices, "usage": shape.usage(done.usage)}
        return JSONResponse(reply, headers=notes(body.ignored))
    streaming = await service.stream(job, caller)
    return event_stream(
        service, _events(streaming, head, body, count), streaming.aclose, notes(body.ignored)
    )


async def _events(
    streaming: Streaming, head: dict[str, Any], body: CompletionBody, count: int
) -> AsyncIterator[bytes]:
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    if wants_usage:
        head = {**head, "usage": None}
    tokenizer = streaming.model.model.tokenizer
    told: dict[int, tuple[int, int]] = {}  # by choice: log probabilities, characters
    try:
        async for output in streaming:
            number = output.index * count + output.choice
            text = output.delta
            if number not in told:
                text = _echo(body, output.index, tokenizer) + text
            start, offset = told.get(number, (0, 0))
            told[number] = (len(output.logprobs or ()), offset + len(output.delta))
            if text or output.finish_reason is not None:
                choice = _choice(output, count, text, tokenizer, start, offset)
                yield event({**head, "choices": [choice]})
            elif output.logprobs is not None:
                told[number] = (start, offset)  # told with the character that they begin
    except ApiError as error:
        yield event(render(error)[1])
    else:
        if wants_usage:
            usage = shape.usage(streaming.totals.usage)
            yield event({**head, "choices": [], "usage": usage})
    yield DONE


def _echo(body: CompletionBody, index: int, tokenizer: Tokenizer) -> str:
    if not body.echo:
        return ""
    prompt = body.prompts[index]
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


def _choice(
    output: RequestOutput,
    count: int,
    text: str,
    tokenizer: Tokenizer,
    start: int = 0,
    offset: int = 0,
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": output.index * count + output.choice,
        "text": text,
        "finish_reason": shape.finish_reason(output),
        "logprobs": None,
    }
    if output.finish_reason == "repetition":
        choice["stop_reason"] = "repetition"
    if output.logprobs is not None:
        entries = shape.logprobs(output, tokenizer, start)
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += len(entry["token"])
        choice["logprobs"] = {
            "tokens": [e["token"] for e in entries],
            "token_logprobs": [e["logprob"] for e in entries],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in e["top_logprobs"]} for e in entries
            ],
            "text_offset": offsets,
        }
    return choice
