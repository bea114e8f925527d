"""async/chat/completions: an answer that is fetched later; and embeddings."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request

from glimmer.errors import OutputError
from glimmer.server.bigmodel.chat import PREFIX, to_job
from glimmer.server.bigmodel.replies import TaskReply, documented
from glimmer.server.bigmodel.requests import ChatBody
from glimmer.server.json_body import JsonRoute
from glimmer.server.offline.folder import disk_refusal
from glimmer.server.openai.models import embed
from glimmer.server.openai.replies import Embeddings
from glimmer.server.openai.requests import EmbeddingBody
from glimmer.server.web import ChatCaller, EmbeddingsCaller, ServiceOf, request_id

router = APIRouter(route_class=JsonRoute)


@router.post("/async/chat/completions", responses=documented(TaskReply))
async def create_async_completion(
    request: Request, body: ChatBody, service: ServiceOf, caller: ChatCaller
) -> dict[str, Any]:
    """Ask now and fetch the answer within a day."""
    to_job(body)  # what is refused is refused now
    service.resolve(body.model, caller, body.adapter)
    folder = service.runner.folder
    task_id = folder.new_id("task")
    name = body.request_id or request_id(request)
    reply = {"id": task_id, "request_id": name, "model": body.model}
    reply["task_status"] = "PROCESSING"
    record = {
        "id": task_id,
        "owner": caller.project,
        "created_at": int(time.time()),
        "reply": reply,
    }
    told = dict(reply)
    given = body.model_dump(exclude_unset=True) | {"stream": False}
    try:
        service.runner.begin_task(record, f"{PREFIX}/chat/completions", given, caller)
    except OutputError as error:
        raise disk_refusal(error) from error
    return told


@router.get("/async-result/{task_id}", responses=documented(TaskReply))
async def retrieve_result(task_id: str, service: ServiceOf, caller: ChatCaller) -> dict[str, Any]:
    """The answer, when it is there."""
    record = service.runner.folder.read("task", task_id, caller.project)
    reply: dict[str, Any] = record["reply"]
    return reply


@router.post("/embeddings", responses=documented(Embeddings))
async def create_embeddings(
    request: Request, body: EmbeddingBody, service: ServiceOf, caller: EmbeddingsCaller
) -> dict[str, Any]:
    """A vector for each text: the mean of the last layer's hidden states."""
    return await embed(request, body, service, caller)
