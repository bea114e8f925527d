"""Files, batches and answers fetched later, through the clients of both platforms."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from glimmer.errors import OutputError
from glimmer.server.access import Caller
from glimmer.server.errors import ApiError
from glimmer.server.offline import batch_file, runner
from glimmer.server.offline.folder import JobFolder, file_record
from glimmer.server.offline.runner import Runner
from glimmer.server.run import Server
from tests.server.test_bigmodel import VALUES, zai, zhipuai
from tests.support.server import running

BODY = {"model": "plain", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
END = ("completed", "failed", "cancelled")


def line(number: int, **values: Any) -> dict[str, Any]:
    body = {**BODY, "seed": number, **values}
    url = "/v1/chat/completions"
    return {"custom_id": f"question-{number}", "method": "POST", "url": url, "body": body}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture(params=["openai", "zai", "zhipuai"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    if request.param == "openai":
        found: Any = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    else:
        make = zai.ZaiClient if request.param == "zai" else zhipuai.ZhipuAI
        found = make(api_key="a.b", base_url=f"{server.url}/api/paas/v4", max_retries=0)
    with closing(found):
        yield found


def wait(read: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while (batch := read()).status not in END and time.monotonic() < deadline:
        time.sleep(0.05)
    return batch


def test_a_batch_from_end_to_end(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(jsonl(line(1), line(2, model="none"), line(3)) + b"\n")
    with path.open("rb") as stream:
        file = client.files.create(file=stream, purpose="batch")
    assert (file.bytes, file.filename) == (path.stat().st_size, "questions.jsonl")
    assert client.files.content(file.id).content == path.read_bytes()
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"what": "a test"},
    )
    assert batch.status == "validating"
    batch = wait(lambda: client.batches.retrieve(batch.id))
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    assert batch.metadata == {"what": "a test"}
    results = [
        json.loads(t) for t in client.files.content(batch.output_file_id).content.splitlines()
    ]
    assert {r["custom_id"] for r in results} == {"question-1", "question-3"}
    for result in results:
        assert result["response"]["status_code"] == 200
        assert result["response"]["body"]["usage"]["completion_tokens"] > 0
    (failed,) = client.files.content(batch.error_file_id).content.splitlines()
    assert json.loads(failed)["custom_id"] == "question-2"
    assert "no model called" in json.loads(failed)["response"]["body"]["error"]["message"]
    assert batch.id in [b.id for b in client.batches.list(limit=100)]
    listed = [f.id for f in client.files.list(purpose="batch").data]
    assert {batch.output_file_id, batch.error_file_id} <= set(listed)
    if file.id in listed:  # the platform's newer client has it deleted with the batch
        assert client.files.delete(file.id).deleted
    assert file.id not in [f.id for f in client.files.list(purpose="batch").data]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "holds no request"),
        (b"{\n", "Line 1 is no JSON object"),
        (b"[" * 10**6, "Line 1 is no JSON object"),
        (jsonl(line(1), line(1)), "Line 2 repeats the custom_id"),
        (jsonl({"custom_id": "a"}), "Line 1 has no body"),
        (jsonl({"body": {}}), "Line 1 has no custom_id"),
        (jsonl({**line(1), "url": "/v1/embeddings"}), "Line 1 has another url"),
        (jsonl({**line(1), "method": "GET"}), "Line 1 has another method"),
    ],
)
def test_batches_that_fail(server: Server, content: bytes, part: str) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        file = client.files.create(file=("a.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        batch = wait(lambda: client.batches.retrieve(batch.id))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert part in str((batch.errors.data or [])[0].message)


def test_refusals(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="purpose 'batch'"):
            client.files.create(file=("a", b"x"), purpose="fine-tune")
        for file_id in ("file-1", "../../etc/passwd", "file-" + "0" * 29, "batch-" + "0" * 29):
            answer = httpx.get(f"{server.url}/v1/files/{file_id}/content")
            assert answer.status_code == 404
        file = client.files.create(file=("a", b"x"), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="endpoint must be"):
            client.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )
        with pytest.raises(openai.NotFoundError, match="no file"):
            client.batches.create(
                input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h"
            )


def test_embeddings_in_a_batch_and_pages(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        body = {"model": "plain", "input": "fox"}
        file = client.files.create(
            file=("a", jsonl({"custom_id": "e", "url": "/v1/embeddings", "body": body})),
            purpose="batch",
        )
        ids = []
        for _ in range(3):
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
            )
            assert wait(lambda b=batch: client.batches.retrieve(b.id)).status == "completed"
            ids.append(batch.id)
            time.sleep(0.002)  # ids rise with milliseconds
        listed = [b.id for b in client.batches.list(limit=1)]  # page by page
        assert [i for i in listed if i in ids] == ids[::-1]


def test_a_batch_goes_on_after_a_restart(models: list[dict[str, Any]], tmp_path: Path) -> None:
    kept = {"jobs_dir": tmp_path / "jobs", "database": str(tmp_path / "db")}
    # Far more than can be answered before the server is stopped.
    content = jsonl(*(line(n, max_tokens=40, ignore_eos=True) for n in range(200)))
    with running({**models[2], "max_num_seqs": 2}, drain_s=0, **kept) as server:
        http = httpx.Client(base_url=f"{server.url}/v1")
        file = http.post("/files", files={"file": content}, data={"purpose": "batch"}).json()
        batch = http.post(
            "/batches", json={"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
        ).json()
        folder = server.service.runner.folder
        output = folder.content(folder.read("batch", batch["id"], "")["output_id"])
        while not output.exists():
            time.sleep(0.01)
        http.close()
    before = output.read_bytes()
    assert 0 < len(batch_file.answered(output)) < 200
    with output.open("ab") as stream:
        stream.write(b'{"id": "cut o')  # as a power cut leaves it
    with running(models[2], **kept) as server:
        url = f"{server.url}/v1/batches/{batch['id']}"
        while httpx.get(url).json()["status"] != "completed":
            time.sleep(0.05)
        assert httpx.get(url).json()["request_counts"] == {
            "total": 200, "completed": 200, "failed": 0,
        }  # fmt: skip
    after = output.read_bytes()
    assert after.startswith(before), "what was answered is not answered again"
    answers = [json.loads(text)["custom_id"] for text in after.splitlines()]
    assert sorted(answers) == sorted(f"question-{n}" for n in range(200))


def test_a_batch_that_is_cancelled_keeps_its_answers(
    models: list[dict[str, Any]], tmp_path: Path
) -> None:
    content = jsonl(*(line(n, max_tokens=40, ignore_eos=True) for n in range(200)))
    with (
        running({**models[2], "max_num_seqs": 2}) as server,
        httpx.Client(base_url=f"{server.url}/v1") as http,
    ):
        file = http.post("/files", files={"file": content}, data={"purpose": "batch"}).json()
        batch = http.post(
            "/batches", json={"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
        ).json()
        url = f"/batches/{batch['id']}"
        while not http.get(url).json()["request_counts"]["completed"]:
            time.sleep(0.01)
        told = http.post(f"{url}/cancel").json()
        assert told["status"] == "cancelled"
        output = http.get(f"/files/{told['output_file_id']}/content").text
        assert 0 < len(output.splitlines()) < 200
        assert http.post(f"{url}/cancel").json()["status"] == "cancelled"


@pytest.mark.parametrize("make", [zai.ZaiClient, zhipuai.ZhipuAI])
def test_an_answer_that_is_fetched_later(server: Server, make: Any) -> None:
    with closing(
        make(api_key="a.b", base_url=f"{server.url}/api/paas/v4", max_retries=0)
    ) as client:
        later = client.chat.asyncCompletions
        task = later.create(**VALUES, request_id="later-1")
        assert (task.task_status, task.request_id) == ("PROCESSING", "later-1")
        while (told := later.retrieve_completion_result(task.id)).task_status == "PROCESSING":
            time.sleep(0.02)
        assert told.task_status == "SUCCESS"
        now = client.chat.completions.create(**VALUES)
        assert told.choices[0].message.content == now.choices[0].message.content
        vectors = client.embeddings.create(model="plain", input=["a", "b"])
        assert [d.index for d in vectors.data] == [0, 1]


def test_a_task_is_refused_at_once_or_fails_later(server: Server) -> None:
    url = f"{server.url}/api/paas/v4"
    bad = httpx.post(f"{url}/async/chat/completions", json={**VALUES, "model": "none"})
    assert bad.json()["error"]["code"] == "1211"
    long = [{"role": "user", "content": "a b " * 5000}]
    task = httpx.post(f"{url}/async/chat/completions", json={**VALUES, "messages": long}).json()
    while (told := httpx.get(f"{url}/async-result/{task['id']}").json())[
        "task_status"
    ] == "PROCESSING":
        time.sleep(0.02)
    assert told["task_status"] == "FAIL"
    assert told["error"]["code"] == "1261"
    assert httpx.get(f"{url}/async-result/task-0").json()["error"]["code"] == "1222"


def test_a_task_that_a_stop_interrupts_has_failed(
    models: list[dict[str, Any]], tmp_path: Path
) -> None:
    kept = {"jobs_dir": tmp_path / "jobs", "database": str(tmp_path / "db")}
    values = {**VALUES, "model": "plain", "max_tokens": 4000, "loop_guard": False}
    with running(models[2], drain_s=0, **kept) as server:
        url = f"{server.url}/api/paas/v4"
        task = httpx.post(f"{url}/async/chat/completions", json=values).json()
        folder = server.service.runner.folder
        record = folder.read("task", task["id"], "")
    record["reply"]["task_status"] = "PROCESSING"  # whether it was interrupted or not
    folder.write(record)
    old = {**record, "id": folder.new_id("task"), "created_at": 0}
    folder.write(old)
    with running(models[2], **kept) as server:
        url = f"{server.url}/api/paas/v4"
        assert httpx.get(f"{url}/async-result/{task['id']}").json()["task_status"] == "FAIL"
        assert httpx.get(f"{url}/async-result/{old['id']}").status_code == 404


def kept_answers(server: Server, batch: dict[str, Any], what: str) -> list[Any]:
    content = httpx.get(f"{server.url}/v1/files/{batch[f'{what}_file_id']}/content").text
    return [json.loads(text) for text in content.splitlines()]


def made(server: Server, *lines: Any) -> Callable[[], Any]:
    """Leaves a batch and returns what reads it."""
    url = f"{server.url}/v1"
    file = httpx.post(f"{url}/files", files={"file": jsonl(*lines)}, data={"purpose": "batch"})
    values = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions"}
    batch = httpx.post(f"{url}/batches", json=values).json()
    return lambda: SimpleNamespace(**httpx.get(f"{url}/batches/{batch['id']}").json())


def test_a_mistake_of_ours_fails_a_line_and_a_task(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glimmer.server import jobs

    async def fail(*_: object) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr(jobs, "complete", fail)
    batch = wait(made(server, line(1), line(2)))
    assert (batch.status, batch.request_counts["failed"]) == ("completed", 2)
    for answer in kept_answers(server, vars(batch), "error"):
        assert answer["response"]["status_code"] == 500
    url = f"{server.url}/api/paas/v4"
    task = httpx.post(f"{url}/async/chat/completions", json=VALUES).json()
    while (told := httpx.get(f"{url}/async-result/{task['id']}").json())[
        "task_status"
    ] == "PROCESSING":
        time.sleep(0.02)
    assert told["task_status"] == "FAIL"


def test_a_full_disk_ends_a_batch(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real = JobFolder.append

    def fail(self: JobFolder, record_id: str, data: bytes) -> None:
        if b"question-2" in data:
            raise OutputError("/a/path cannot be written: No space left on device.")
        real(self, record_id, data)

    monkeypatch.setattr(JobFolder, "append", fail)
    batch = wait(made(server, *(line(n) for n in range(1, 4))))
    assert batch.status == "failed"
    assert "its log says why" in batch.errors["data"][0]["message"]
    assert "path" not in str(batch.errors)


def test_ids_rise_whatever_the_clock_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = JobFolder(tmp_path)
    told = iter([2_000_000_000, 2_000_000_000, 1_000_000_000, 2_000_000_000, 3_000_000_000])
    monkeypatch.setattr(time, "time_ns", lambda: next(told) * 10**9)
    ids = [folder.new_id("file") for _ in range(5)]
    assert ids == sorted(set(ids))


def test_what_somebody_has_damaged_stops_nothing_else(
    models: list[dict[str, Any]], tmp_path: Path
) -> None:
    kept = {"jobs_dir": tmp_path / "jobs", "database": str(tmp_path / "db")}
    folder = JobFolder(tmp_path / "jobs")
    for kind in ("file", "batch", "task"):
        for text in ("", "[]", "{}", '{"owner": ""}'):
            (tmp_path / "jobs" / f"{folder.new_id(kind)}.json").write_text(text)
    bad = folder.new_id("batch")
    folder.write({"id": bad, "owner": "", "reply": {"id": bad, "status": "in_progress"}})
    file = folder.new_id("file")
    folder.content(file).write_bytes(jsonl(line(1)))
    folder.write(file_record(file, "", "a", "batch", 1))
    good = folder.new_id("batch")
    reply = {"id": good, "status": "in_progress", "endpoint": "/v1/chat/completions",
             "input_file_id": file, "request_counts": {}}  # fmt: skip
    outputs = {"output_id": folder.new_id("file"), "error_id": folder.new_id("file")}
    folder.write({"id": good, "owner": "", "key_id": None, "path": "/v1/chat/completions",
                  "deletes_input": False, "reply": reply, **outputs})  # fmt: skip
    with running(models[2], **kept) as server:
        url = f"{server.url}/v1"
        assert [f["id"] for f in httpx.get(f"{url}/files").json()["data"]][-1] == file
        read = f"{url}/batches/{good}"
        assert wait(lambda: SimpleNamespace(**httpx.get(read).json())).status == "completed"
        assert httpx.get(f"{url}/batches/{bad}").json()["status"] == "failed"


@pytest.mark.skipif(sys.platform == "win32", reason="files have no mode")
def test_what_clients_have_written_is_the_servers_alone(
    models: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "jobs").mkdir(mode=0o755)
    with running(models[2], jobs_dir=tmp_path / "jobs") as server:
        assert wait(made(server, line(1), line(2, model="none"))).status == "completed"
    files = [*(tmp_path / "jobs").iterdir()]
    assert len(files) == 7  # a batch; its input, answers and refusals, each with a record
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_nothing_is_taken_while_the_model_loads(
    models: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glimmer.server import models as pool

    gate = threading.Event()
    real = pool.open_llm

    def slow(*values: Any) -> Any:
        gate.wait(10)
        return real(*values)

    monkeypatch.setattr(pool, "open_llm", slow)
    with running(models[2], wait=False) as server:
        try:
            url = f"{server.url}/v1"
            file = httpx.post(f"{url}/files", files={"file": b"x"}, data={"purpose": "batch"})
            values = {"input_file_id": file.json()["id"], "endpoint": "/v1/embeddings"}
            assert httpx.post(f"{url}/batches", json=values).status_code == 503
            url = f"{server.url}/api/paas/v4/async/chat/completions"
            answer = httpx.post(url, json={**VALUES, "model": "plain"})
            assert answer.json()["error"]["code"] == "1305"
        finally:
            gate.set()
        assert not [*server.service.runner.folder.list("batch")]


def run_batches(folder: JobFolder, count: int, lines: bytes, answer: Any, owner: Any) -> list[Any]:
    """Run that many of the same batch, and return what is known of them in the end."""

    async def main() -> list[Any]:
        found = Runner(folder, SimpleNamespace(owner=owner))  # type: ignore[arg-type]
        found.start(SimpleNamespace())  # type: ignore[arg-type]
        file = folder.new_id("file")
        folder.content(file).write_bytes(lines)
        batches = []
        for _ in range(count):
            batches.append(folder.new_id("batch"))
            reply = {"id": batches[-1], "status": "validating", "request_counts": {},
                     "endpoint": "/v1/chat/completions", "input_file_id": file}  # fmt: skip
            outputs = {"output_id": folder.new_id("file"), "error_id": folder.new_id("file")}
            found.begin_batch({"id": batches[-1], "owner": "", "key_id": "a", "path": "/",
                               "deletes_input": False, "reply": reply, **outputs})  # fmt: skip
        await asyncio.gather(*found._running.values())
        await found.aclose()
        return [folder.read("batch", name, "")["reply"] for name in batches]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "request_inside", answer)
        return asyncio.run(main())


def test_batches_leave_room_for_those_who_wait(tmp_path: Path) -> None:
    active = [0, 0]  # now, and at most
    bodies: list[Any] = []

    async def answer(app: Any, path: str, body: Any, caller: Any) -> Any:
        active[0] += 1
        active[1] = max(active)
        bodies.append(body)
        await asyncio.sleep(0.001)
        active[0] -= 1
        return 200, {}, {}

    async def owner(key_id: str) -> Caller:
        return Caller("", "batches")

    lines = jsonl(*(line(n, priority=-9) for n in range(20)))
    told = run_batches(JobFolder(tmp_path), 6, lines, answer, owner)
    assert {batch["request_counts"]["completed"] for batch in told} == {20}
    assert active[1] == runner._NUM_SEATS
    assert {body["priority"] for body in bodies} == {runner.PRIORITY}


def test_a_batch_ends_with_its_key_and_not_with_the_database(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    looks = [None, ApiError("internal", "Not now.", retry_after_s=0.01), *[None] * 20]
    looks.append(ApiError("bad_key", "This API key has been revoked."))

    async def answer(app: Any, path: str, body: Any, caller: Any) -> Any:
        await asyncio.sleep(0)
        return 200, {}, {}

    async def owner(key_id: str) -> Caller:
        look = looks.pop(0) if len(looks) > 1 else looks[0]
        if look is not None:
            raise look
        return Caller("", "batches")

    lines = jsonl(*(line(n) for n in range(100)))
    (batch,) = run_batches(folder, 1, lines, answer, owner)
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["message"] == "This API key has been revoked."
    assert 0 < len(batch_file.answered(folder.content(batch["output_file_id"]))) <= 20
