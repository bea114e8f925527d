"""Does what was left with the server: batches line by line, and single answers.

A batch goes on where it was when the server is started again. Its requests come after those of
clients that wait.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from typing import Any

from starlette.types import ASGIApp

from glimmer.errors import GlimmerError
from glimmer.server.access import Access, Caller
from glimmer.server.errors import ApiError
from glimmer.server.offline import batch_file
from glimmer.server.offline.folder import JobFolder, Record, file_record
from glimmer.server.offline.inside import request_inside

_LOG = logging.getLogger("glimmer.server")
_NUM_AT_ONCE = 8
"""Requests of one batch: enough to fill an engine's batch beside those of clients."""
PRIORITY = 500
"""Behind everybody who waits."""
MAX_TASKS = 1000
_REPORT_S = 1.0
"""How often a batch's record tells how far it is."""
_TASK_DAYS = 1
_LAST_RETRY_S = 60.0
_OPEN = ("validating", "in_progress", "finalizing", "cancelling")


class Runner:
    """Belongs to one application, ``app``, to which the requests are made."""

    def __init__(self, folder: JobFolder, access: Access) -> None:
        self.folder = folder
        self._access = access
        self._app: ASGIApp | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    async def start(self, app: ASGIApp) -> None:
        """Go on with open batches; tasks that were interrupted have failed."""
        self._app = app
        for task in self.folder.list("task"):
            if task["created_at"] < time.time() - _TASK_DAYS * 86400:
                self.folder.delete(task["id"])
            elif task["reply"]["task_status"] == "PROCESSING":
                task["reply"]["task_status"] = "FAIL"
                self.folder.write(task)
        for batch in self.folder.list("batch"):
            if batch["reply"]["status"] in _OPEN:
                self._begin(batch["id"], self._run_batch(batch))

    async def aclose(self) -> None:
        """Leave everything as it is; batches are gone on with at the next start."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def begin_batch(self, batch: Record) -> None:
        self._begin(batch["id"], self._run_batch(batch))

    def begin_task(self, record: Record, path: str, body: Any, caller: Caller) -> None:
        """Make one request; its reply is kept for a day.

        Raises:
            ApiError: too many are under way.
        """
        if len(self._running) >= MAX_TASKS:
            raise ApiError(
                "queue_full", f"{len(self._running)} answers are under way.", retry_after_s=5
            )
        self.folder.write(record)
        self._begin(record["id"], self._run_task(record, path, body, caller))

    def cancel_batch(self, batch: Record) -> Record:
        """Stop a batch; what is answered is kept."""
        reply = batch["reply"]
        if reply["status"] in _OPEN:
            if (task := self._running.pop(batch["id"], None)) is not None:
                task.cancel()
            reply["cancelling_at"] = reply["cancelled_at"] = int(time.time())
            self._finish(batch, "cancelled")
        return batch

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running[name] = task
        task.add_done_callback(lambda _: self._running.pop(name, None))

    async def _run_task(self, record: Record, path: str, body: Any, caller: Caller) -> None:
        status, answer, _ = await self._request(path, body, caller)
        if status == 200:
            record["reply"] |= {**answer, "id": record["id"], "task_status": "SUCCESS"}
        else:
            record["reply"] |= {"task_status": "FAIL", **answer}
        self._write(record)

    async def _run_batch(self, batch: Record) -> None:
        reply = batch["reply"]
        content = self.folder.content(reply["input_file_id"])
        try:
            caller = self._access.owner(batch["key_id"])
            total, problems = await asyncio.to_thread(batch_file.check, content, reply["endpoint"])
        except ApiError as error:
            total, problems = 0, [{"code": error.kind, "message": error.message, "line": None}]
        except OSError:
            told = "The input file cannot be read."
            total, problems = 0, [{"code": "file", "message": told, "line": None}]
        if problems:
            reply["errors"] = {"object": "list", "data": problems}
            reply["failed_at"] = int(time.time())
            reply["status"] = "failed"
            self._write(batch)
            return
        outputs = self.folder.content(batch["output_id"]), self.folder.content(batch["error_id"])
        good, bad = (batch_file.answered(path) for path in outputs)
        counts = reply["request_counts"]
        counts |= {"total": total, "completed": len(good), "failed": len(bad)}
        reply["in_progress_at"] = reply.get("in_progress_at") or int(time.time())
        reply["status"] = "in_progress"
        self._write(batch)
        left = (line for line in batch_file.lines(content) if line[0] not in good | bad)

        async def work() -> None:
            for number, text in left:
                line = json.loads(text)
                body = {"priority": PRIORITY, **line["body"], "stream": False}
                status, answer, _ = await self._request(batch["path"], body, caller)
                result = batch_file.result(batch["id"], number, line["custom_id"], status, answer)
                # An answer is on disk before it counts as given.
                with outputs[status != 200].open("ab") as stream:
                    stream.write(result)
                counts["completed" if status == 200 else "failed"] += 1

        workers = [asyncio.create_task(work()) for _ in range(_NUM_AT_ONCE)]
        try:
            while not all(worker.done() for worker in workers):
                await asyncio.wait(workers, timeout=_REPORT_S)
                self._write(batch)
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        reply["finalizing_at"] = reply["completed_at"] = int(time.time())
        self._finish(batch, "completed")

    async def _request(
        self, path: str, body: Any, caller: Caller
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """What comes too soon comes again."""
        assert self._app is not None
        wait_s = 1.0
        while True:
            status, answer, headers = await request_inside(self._app, path, body, caller)
            if status not in (429, 503) or "retry-after" not in headers:
                return status, answer, headers
            await asyncio.sleep(min(float(headers["retry-after"]), wait_s, _LAST_RETRY_S))
            wait_s *= 2

    def _finish(self, batch: Record, status: str) -> None:
        """Make files of what was written."""
        reply = batch["reply"]
        reply["status"] = status
        for what in ("output", "error"):
            content = self.folder.content(batch[f"{what}_id"])
            if content.exists():
                reply[f"{what}_file_id"] = batch[f"{what}_id"]
                self._write(
                    file_record(
                        batch[f"{what}_id"],
                        batch["owner"],
                        f"{batch['id']}_{what}.jsonl",
                        "batch",
                        content.stat().st_size,
                    )
                )
        if batch["deletes_input"] and status == "completed":
            self.folder.delete(reply["input_file_id"])
        self._write(batch)

    def _write(self, record: Record) -> None:
        try:
            self.folder.write(record)
        except GlimmerError as error:  # the disk is full: what is in memory still holds
            _LOG.error("%s", error)
