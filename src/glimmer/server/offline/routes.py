"""Files and batches over HTTP: the same for OpenAI and BigModel, but for path and refusals."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import FileResponse
from pydantic import Field

from glimmer.errors import OutputError
from glimmer.server.access import Caller
from glimmer.server.bodies import Body, Few
from glimmer.server.errors import ApiError
from glimmer.server.json_body import JsonRoute
from glimmer.server.offline.batch_file import endpoint_name
from glimmer.server.offline.folder import JobFolder, Record, disk_refusal, file_record, page
from glimmer.server.offline.replies import BatchList, BatchReply, FileGone, FileList, FileReply
from glimmer.server.replies import Reply, Responses
from glimmer.server.service import Service
from glimmer.server.web import BatchesCaller, FilesCaller, ServiceOf

Limit = Annotated[int, Query(ge=1, le=10_000)]
MAX_FILE_BYTES = 100 << 20
"""As on the platform."""


class BatchBody(Body):
    input_file_id: str
    endpoint: str
    completion_window: Annotated[str, Field(max_length=40)] | None = None
    """Taken, and told back: a batch here takes as long as it takes."""
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=16),
            Few,
        ]
        | None
    ) = None
    auto_delete_input_file: bool = False


def make_router(prefix: str, tag: str, documented: Callable[[type[Reply]], Responses]) -> APIRouter:
    """The routes behind ``prefix``, where the requests of batches go too."""
    router = APIRouter(route_class=JsonRoute, prefix=prefix, tags=[tag])

    @router.post("/files", responses=documented(FileReply))
    async def create_file(
        service: ServiceOf,
        caller: FilesCaller,
        file: Annotated[UploadFile, File()],
        purpose: Annotated[str, Form()],
    ) -> dict[str, Any]:
        """Leave a file here: requests, one a line, for a batch."""
        if purpose != "batch":
            raise ApiError(
                "unsupported",
                f"Files are taken for the purpose 'batch', but it is {purpose[:40]!r}.",
                param="purpose",
            )
        folder = service.runner.folder
        file_id = folder.new_id("file")
        name = "".join(c for c in (file.filename or "")[:1000] if c.isprintable())[:200]

        def keep() -> Record:
            size = folder.keep(file_id, file.file)
            record = file_record(file_id, caller.project, name, purpose, size)
            folder.write(record)
            return record

        try:
            record = await anyio.to_thread.run_sync(keep)
        except OutputError as error:
            folder.delete(file_id)
            raise disk_refusal(error) from error
        reply: dict[str, Any] = record["reply"]
        return reply

    @router.get("/files", responses=documented(FileList))
    async def list_files(
        service: ServiceOf,
        caller: FilesCaller,
        purpose: str | None = None,
        after: str | None = None,
        limit: Limit = 1000,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        """The files of the key's project, newest first."""

        def find() -> dict[str, Any]:
            records = service.runner.folder.list("file", caller.project)
            chosen = [r for r in records if purpose in (None, r["reply"].get("purpose"))]
            if order == "asc":
                chosen.reverse()
            return _list(iter(chosen), after, limit)

        return await anyio.to_thread.run_sync(find)

    @router.get("/files/{file_id}", responses=documented(FileReply))
    async def retrieve_file(
        file_id: str, service: ServiceOf, caller: FilesCaller
    ) -> dict[str, Any]:
        """What is known of a file."""
        return _reply(service.runner.folder, "file", file_id, caller)

    @router.get(
        "/files/{file_id}/content", responses=documented(Reply), response_class=FileResponse
    )
    async def file_content(file_id: str, service: ServiceOf, caller: FilesCaller) -> FileResponse:
        """A file as it is."""
        _reply(service.runner.folder, "file", file_id, caller)
        path = service.runner.folder.content(file_id)
        return FileResponse(path, media_type="application/octet-stream")

    @router.delete("/files/{file_id}", responses=documented(FileGone))
    async def delete_file(file_id: str, service: ServiceOf, caller: FilesCaller) -> dict[str, Any]:
        """Delete a file."""
        _reply(service.runner.folder, "file", file_id, caller)
        service.runner.folder.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @router.post("/batches", responses=documented(BatchReply))
    async def create_batch(
        body: BatchBody, service: ServiceOf, caller: BatchesCaller
    ) -> dict[str, Any]:
        """Have a file of requests answered, when nobody else waits."""
        return _create_batch(service, caller, body, prefix)

    @router.get("/batches", responses=documented(BatchList))
    async def list_batches(
        service: ServiceOf, caller: BatchesCaller, after: str | None = None, limit: Limit = 20
    ) -> dict[str, Any]:
        """The batches of the key's project, newest first."""
        folder = service.runner.folder
        return await anyio.to_thread.run_sync(
            lambda: _list(folder.list("batch", caller.project), after, limit)
        )

    @router.get("/batches/{batch_id}", responses=documented(BatchReply))
    async def retrieve_batch(
        batch_id: str, service: ServiceOf, caller: BatchesCaller
    ) -> dict[str, Any]:
        """How far a batch is."""
        return _reply(service.runner.folder, "batch", batch_id, caller)

    @router.post("/batches/{batch_id}/cancel", responses=documented(BatchReply))
    async def cancel_batch(
        batch_id: str, service: ServiceOf, caller: BatchesCaller
    ) -> dict[str, Any]:
        """Stop a batch; what is answered is kept."""
        batch = service.runner.folder.read("batch", batch_id, caller.project)
        reply: dict[str, Any] = service.runner.cancel_batch(batch)["reply"]
        return reply

    return router


def _create_batch(service: Service, caller: Caller, body: BatchBody, prefix: str) -> dict[str, Any]:
    folder = service.runner.folder
    what = endpoint_name(body.endpoint)
    if what is None:
        raise ApiError(
            "invalid",
            "endpoint must be /v1/chat/completions or /v1/embeddings (or /v4/...), but it is "
            f"{body.endpoint[:80]!r}.",
            param="endpoint",
        )
    folder.read("file", body.input_file_id, caller.project)
    batch_id = folder.new_id("batch")
    reply: dict[str, Any] = {
        "id": batch_id,
        "object": "batch",
        "endpoint": body.endpoint,
        "input_file_id": body.input_file_id,
        "completion_window": body.completion_window or "24h",
        "status": "validating",
        "created_at": int(time.time()),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": body.metadata,
    }
    record = {
        "id": batch_id,
        "owner": caller.project,
        "key_id": caller.key_id,
        "path": f"{prefix}/{what}",
        "output_id": folder.new_id("file"),
        "error_id": folder.new_id("file"),
        "deletes_input": body.auto_delete_input_file,
        "reply": reply,
    }
    told = {**reply, "request_counts": {**reply["request_counts"]}}
    try:
        service.runner.begin_batch(record)
    except OutputError as error:
        raise disk_refusal(error) from error
    return told


def _reply(folder: JobFolder, kind: str, record_id: str, caller: Caller) -> dict[str, Any]:
    reply: dict[str, Any] = folder.read(kind, record_id, caller.project)["reply"]
    return reply


def _list(records: Any, after: str | None, limit: int) -> dict[str, Any]:
    found, has_more = page(records, after, limit)
    data = [record["reply"] for record in found]
    told = {"object": "list", "data": data, "has_more": has_more}
    if data:
        told |= {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
    return told
