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
from glimmer.server.envelope import log_mistake
from glimmer.server.errors import ApiError
from glimmer.server.offline import batch_file
from glimmer.server.offline.folder import JobFolder, Record, file_record
from glimmer.server.offline.inside import request_inside

_LOG = logging.getLogger("glimmer.server")
_NUM_AT_ONCE = 8
"""Requests of one batch: enough to fill an engine's batch beside those of clients."""
_NUM_SEATS = 32
"""Requests of all batches, and as many of tasks: they must not fill the queue of those who wait."""
PRIORITY = 500
"""Behind everybody who waits."""
MAX_TASKS = 1000
"""Under way, batches among them."""
_REPORT_S = 1.0
"""How often a batch's record tells how far it is."""
_TASK_DAYS = 1
_SWEEP_S = 3600.0
_LAST_RETRY_S = 60.0
_OPEN = ("validating", "in_progress", "finalizing", "cancelling")


class Runner:
    """Belongs to one application, ``app``, to which the requests are made."""

    def __init__(self, folder: JobFolder, access: Access) -> None:
        self.folder = folder
        self._access = access
        self._app: ASGIApp | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._batches: dict[str, Record] = {}
        """Those that run."""
        self._batch_seats = asyncio.Semaphore(_NUM_SEATS)
        self._task_seats = asyncio.Semaphore(_NUM_SEATS)
        self._left: list[Record] = []
        self._sweeper: asyncio.Task[None] | None = None

    async def read(self) -> None:
        """Find what was left at the last stop; tasks that were interrupted have failed."""
        self._left = await asyncio.to_thread(self._read)

    def start(self, app: ASGIApp) -> None:
        """Go on with open batches, and take new ones."""
        self._app = app
        for batch in self._left:
            self._begin(batch["id"], self._run_batch(batch))
        self._sweeper = asyncio.create_task(self._sweep())

    async def aclose(self) -> None:
        """Leave everything as it is; batches are gone on with at the next start."""
        running = list(self._running.values())
        if self._sweeper is not None:
            running.append(self._sweeper)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def begin_batch(self, batch: Record) -> None:
        """Raises ApiError, as ``begin_task``; OutputError."""
        self._check_room()
        self.folder.write(batch)
        self._begin(batch["id"], self._run_batch(batch))

    def begin_task(self, record: Record, path: str, body: Any, caller: Caller) -> None:
        """Make one request; its reply is kept for a day.

        Raises:
            ApiError: too many are under way, or the server is still loading its model.
            OutputError: the disk is full.
        """
        self._check_room()
        self.folder.write(record)
        self._begin(record["id"], self._run_task(record, path, body, caller))

    def cancel_batch(self, batch: Record) -> Record:
        """Stop a batch; what is answered is kept. Raises ApiError while the server is loading."""
        self._check_started()
        batch = self._batches.get(batch["id"], batch)
        reply = batch["reply"]
        if reply["status"] in _OPEN:
            if (task := self._running.pop(batch["id"], None)) is not None:
                task.cancel()
            reply["cancelling_at"] = reply["cancelled_at"] = int(time.time())
            self._finish(batch, "cancelled")
        return batch

    def _check_started(self) -> None:
        if self._app is None:
            raise ApiError(
                "loading",
                "The server is still loading its model. Try again in a moment.",
                retry_after_s=5,
            )

    def _check_room(self) -> None:
        self._check_started()
        if (count := len(self._running)) >= MAX_TASKS:
            raise ApiError("queue_full", f"{count} answers are under way.", retry_after_s=5)

    def _read(self) -> list[Record]:
        self._delete_old_tasks()
        for task in self.folder.list("task"):
            if task["reply"].get("task_status") == "PROCESSING":
                task["reply"]["task_status"] = "FAIL"
                self._write(task)
        return [b for b in self.folder.list("batch") if b["reply"].get("status") in _OPEN]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            await asyncio.to_thread(self._delete_old_tasks)

    def _delete_old_tasks(self) -> None:
        oldest = time.time() - _TASK_DAYS * 86400
        for task in self.folder.list("task"):
            if task.get("created_at", 0) < oldest and task["id"] not in self._running:
                self.folder.delete(task["id"])

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running[name] = task
        task.add_done_callback(lambda _: self._running.pop(name, None))

    async def _run_task(self, record: Record, path: str, body: Any, caller: Caller) -> None:
        status, answer = await self._request(path, body, caller, self._task_seats)
        if status == 200:
            own = {name: record["reply"][name] for name in ("id", "request_id")}
            record["reply"] |= {**answer, **own, "task_status": "SUCCESS"}
        else:
            record["reply"] |= {"task_status": "FAIL", **answer}
        self._write(record)

    async def _run_batch(self, batch: Record) -> None:
        self._batches[batch["id"]] = batch
        try:
            await self._answer_batch(batch)
        except ApiError as error:  # its key was revoked
            self._fail(batch, [{"code": error.kind, "message": error.message, "line": None}])
        except Exception as error:  # the disk is full, the record damaged, or a mistake of ours
            log_mistake(error, f"batch {batch['id']}")
            told = "The server could not go on with the batch; its log says why."
            self._fail(batch, [{"code": "internal", "message": told, "line": None}])
        finally:
            self._batches.pop(batch["id"], None)

    async def _answer_batch(self, batch: Record) -> None:
        reply = batch["reply"]
        content = self.folder.content(reply["input_file_id"])
        try:
            await self._owner(batch)
            total, problems = await asyncio.to_thread(batch_file.check, content, reply["endpoint"])
        except ApiError as error:
            total, problems = 0, [{"code": error.kind, "message": error.message, "line": None}]
        except OSError:
            told = "The input file cannot be read."
            total, problems = 0, [{"code": "file", "message": told, "line": None}]
        if problems:
            self._fail(batch, problems)
            return
        outputs = [self.folder.content(batch[f"{what}_id"]) for what in ("output", "error")]
        good, bad = await asyncio.to_thread(lambda: [batch_file.answered(p) for p in outputs])
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
                if isinstance(body["priority"], int):
                    body["priority"] = max(body["priority"], PRIORITY)
                caller = await self._owner(batch)
                status, answer = await self._request(batch["path"], body, caller, self._batch_seats)
                if batch["id"] not in self._running:
                    return  # cancelled: its files are complete
                result = batch_file.result(batch["id"], number, line["custom_id"], status, answer)
                # An answer is on disk before it counts as given.
                self.folder.append(batch["output_id" if status == 200 else "error_id"], result)
                counts["completed" if status == 200 else "failed"] += 1

        workers = [asyncio.create_task(work()) for _ in range(_NUM_AT_ONCE)]
        try:
            pending = set(workers)
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=_REPORT_S, return_when=asyncio.FIRST_EXCEPTION
                )
                for worker in done:
                    worker.result()
                self._write(batch)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        reply["finalizing_at"] = reply["completed_at"] = int(time.time())
        self._finish(batch, "completed")

    async def _owner(self, batch: Record) -> Caller:
        """Looked up for each line: a key may be revoked meanwhile.

        Raises:
            ApiError: the key does not hold any more.
        """
        while True:
            try:
                return await self._access.owner(batch["key_id"])
            except ApiError as error:
                if error.retry_after_s is None:
                    raise
                await asyncio.sleep(error.retry_after_s)  # the database is away

    async def _request(
        self, path: str, body: Any, caller: Caller, seats: asyncio.Semaphore
    ) -> tuple[int, dict[str, Any]]:
        """Status and body. What comes too soon comes again."""
        assert self._app is not None
        wait_s = 1.0
        while True:
            async with seats:
                status, answer, headers = await request_inside(self._app, path, body, caller)
            if status not in (429, 503) or "retry-after" not in headers:
                return status, answer
            await asyncio.sleep(min(float(headers["retry-after"]), wait_s, _LAST_RETRY_S))
            wait_s *= 2

    def _fail(self, batch: Record, problems: list[dict[str, Any]]) -> None:
        batch["reply"]["errors"] = {"object": "list", "data": problems}
        batch["reply"]["failed_at"] = int(time.time())
        self._finish(batch, "failed")

    def _finish(self, batch: Record, status: str) -> None:
        """Make files of what was written."""
        reply = batch["reply"]
        reply["status"] = status
        for what in ("output", "error"):
            file_id = batch.get(f"{what}_id")
            if file_id is not None and (content := self.folder.content(file_id)).exists():
                size = content.stat().st_size
                name = f"{batch['id']}_{what}.jsonl"
                self._write(file_record(file_id, batch["owner"], name, "batch", size))
                reply[f"{what}_file_id"] = file_id
        if status == "completed" and batch["deletes_input"]:
            self.folder.delete(reply["input_file_id"])
        self._write(batch)

    def _write(self, record: Record) -> None:
        try:
            self.folder.write(record)
        except GlimmerError as error:  # the disk is full: what is in memory still holds
            _LOG.error("%s", error)
