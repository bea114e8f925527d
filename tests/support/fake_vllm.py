"""A stand-in for `vllm serve`: the routes that the front uses, answered by the native engine.

Fields and shapes are those of vLLM 0.32 (vllm/entrypoints/openai/completion/protocol.py); a field
that is not among them is refused, though vLLM itself would pass over it, so that a slip shows.
As a program, ``python -m tests.support.fake_vllm serve FOLDER ...`` takes vLLM's place.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

import glimmer
from glimmer.errors import GlimmerError
from glimmer.outputs import RequestOutput

_FIELDS = {
    "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos", "stop_token_ids",
    "stream", "stream_options", "return_token_ids", "return_tokens_as_token_ids", "logit_bias",
    "structured_outputs", "seed", "logprobs", "priority",
}  # fmt: skip


class FakeVllm:
    """One server; its attributes make it fail."""

    def __init__(self, llm: glimmer.AsyncLLM, name: str, key: str | None = None) -> None:
        self.llm = llm
        self.name = name
        self.key = key
        self.bodies: list[dict[str, Any]] = []
        """Of the requests for an answer, as they came."""
        self.num_ended = 0
        """Streams that have ended, well or not."""
        self.is_healthy = True
        self.status: int | None = None
        """Answer so, and not with tokens."""
        self.break_after: int | None = None
        """Cut the connection after so many tokens."""
        self.hang_after: int | None = None
        """Say nothing any more after so many tokens."""
        self.stream_error: int | None = None
        """Tell an error of this code in the place of tokens."""
        self.pause_s = 0.0
        """Before each token."""
        self.app = FastAPI()
        self.app.add_api_route("/health", self._health)
        self.app.add_api_route("/v1/models", self._models)
        self.app.add_api_route("/v1/completions", self._complete, methods=["POST"])
        self.url = ""

    def _is_allowed(self, request: Request) -> bool:
        return self.key is None or request.headers.get("authorization") == f"Bearer {self.key}"

    async def _health(self) -> Response:
        return Response(status_code=200 if self.is_healthy else 503)

    async def _models(self, request: Request) -> Response:
        if not self._is_allowed(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        card = {"id": self.name, "object": "model", "max_model_len": self.llm.max_model_len}
        return JSONResponse({"object": "list", "data": [card]})

    async def _complete(self, request: Request) -> Response:
        if not self._is_allowed(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        body = await request.json()
        self.bodies.append(body)
        if self.status is not None:
            return _error(f"made to answer {self.status}", self.status)
        if unknown := body.keys() - _FIELDS:
            return _error(f"unknown fields: {sorted(unknown)}", 400)
        if body["model"] != self.name:
            return _error(f"The model `{body['model']}` does not exist.", 404)
        assert body["stream"]
        assert body["return_token_ids"]
        try:
            stream = await self.llm.generate(body["prompt"], _params(body), stream=True)
        except GlimmerError as error:
            return _error(str(error), 400)
        return StreamingResponse(self._events(stream, body), media_type="text/event-stream")

    async def _events(self, stream: Any, body: dict[str, Any]) -> AsyncIterator[str]:
        shown = 0
        try:
            if self.stream_error is not None:
                while self.hang_after == 0:
                    await asyncio.sleep(0.01)
                error = {"message": "made to fail", "type": "X", "code": self.stream_error}
                yield _event({"error": error})
                return
            async for output in stream:
                if output.error is not None:
                    yield _event({"error": {"message": str(output.error), "code": 500}})
                    break
                for number in range(shown, len(output.token_ids)):
                    await asyncio.sleep(self.pause_s)
                    if number == self.break_after:
                        raise ConnectionError("made to break off")
                    while number == self.hang_after:
                        await asyncio.sleep(0.05)
                    yield _event(_chunk(output, number, number == len(output.token_ids) - 1))
                shown = len(output.token_ids)
            usage = {
                "prompt_tokens": output.usage.prompt_tokens,
                "completion_tokens": output.usage.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": output.usage.cached_tokens},
            }
            yield _event({"choices": [], "usage": usage})
            yield "data: [DONE]\n\n"
        finally:
            self.num_ended += 1
            await stream.aclose()


def _params(body: dict[str, Any]) -> glimmer.SamplingParams:
    form = body.get("structured_outputs")
    given = {
        "max_new_tokens": body["max_tokens"],
        "seed": body.get("seed"),
        "logprobs": body.get("logprobs"),
        "stop_token_ids": body["stop_token_ids"],
        "ignore_eos": body["ignore_eos"],
        "logit_bias": {int(token): bias for token, bias in body.get("logit_bias", {}).items()},
        "constraint": form and glimmer.Constraint.grammar(form["grammar"]),
        "loop_guard": False,
    }
    for name in (
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty",
    ):  # fmt: skip
        given[name] = body[name]
    return glimmer.SamplingParams(**given)


def _chunk(output: RequestOutput, number: int, is_last: bool) -> dict[str, Any]:
    told = None
    if output.logprobs is not None:
        entry = output.logprobs[number]
        chosen = f"token_id:{output.token_ids[number]}"
        likeliest = {f"token_id:{token}": value for token, value in entry.top}
        told = {
            "tokens": [chosen],
            "token_logprobs": [entry.logprob],
            "top_logprobs": [{chosen: entry.logprob, **likeliest}],
        }
    choice = {
        "index": 0,
        "text": "",  # never looked at
        "logprobs": told,
        "finish_reason": output.finish_reason if is_last else None,
        "token_ids": [output.token_ids[number]],
    }
    return {"object": "text_completion", "choices": [choice]}


def _event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _error(message: str, status: int) -> Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": error}, status)


@contextmanager
def running_fake(fake: FakeVllm, port: int = 0) -> Iterator[FakeVllm]:
    """Serve until the end of the block."""
    config = uvicorn.Config(fake.app, port=port, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield fake
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("folder")
    parser.add_argument("--uds", required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--dtype")
    parser.add_argument("--worker")
    args, rest = parser.parse_known_args()
    print("fake vLLM got", json.dumps(rest), flush=True)
    if "--fail" in rest:
        print("fake vLLM was made to fail", flush=True)
        sys.exit(3)
    if args.worker is not None:
        worker = subprocess.Popen(["sleep", "600"])
        Path(args.worker).write_text(str(worker.pid))
    while "--never" in rest:
        time.sleep(0.1)
    llm = glimmer.AsyncLLM(args.folder, num_threads=1, kv_memory="32MiB")
    fake = FakeVllm(llm, args.served_model_name, os.environ["VLLM_API_KEY"])
    uvicorn.run(fake.app, uds=args.uds, log_config=None, access_log=False)


if __name__ == "__main__":
    main()
