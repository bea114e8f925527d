"""Two hundred clients at the engine itself and at the server. Runs in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import glimmer
from benchmarks import child
from glimmer import AsyncLLM, SamplingParams

NUM_CLIENTS, ANSWER_TOKENS, NUM_SINGLE = 200, 64, 25
MAX_NUM_SEQS, KV_MEMORY = 32, "1GiB"
_SERVE = "import sys; from glimmer.cli.main import main; sys.exit(main())"
Ask = Callable[[str, int], Awaitable[tuple[float, int]]]
"""Takes a question and a number of tokens; gives seconds to the first one and how many came."""


async def measure(ask: Ask) -> dict[str, float]:
    """Answer tokens per second of all clients together, and seconds to the first token of one."""
    await ask("Warm up.", 8)
    start = time.perf_counter()
    answers = await asyncio.gather(
        *(ask(f"Tell me about the number {n}.", ANSWER_TOKENS) for n in range(NUM_CLIENTS))
    )
    seconds = time.perf_counter() - start
    singles = [(await ask(f"Say {n} words.", 2))[0] for n in range(NUM_SINGLE)]
    return {
        "tokens_per_s": sum(count for _, count in answers) / seconds,
        "first_token_s": statistics.median(singles),
    }


async def at_engine(model: str, threads: int) -> dict[str, float]:
    loaded = glimmer.load(model, num_threads=threads)
    async with AsyncLLM(
        loaded, max_num_seqs=MAX_NUM_SEQS, kv_memory=KV_MEMORY, max_waiting=1000
    ) as llm:

        async def ask(question: str, count: int) -> tuple[float, int]:
            params = SamplingParams(temperature=0, max_new_tokens=count, ignore_eos=True)
            start, first, came = time.perf_counter(), 0.0, 0
            messages = [{"role": "user", "content": question}]
            async for output in await llm.chat(messages, params, stream=True):
                first = first or time.perf_counter() - start
                came = output.usage.completion_tokens
            return first, came

        return await measure(ask)


async def at_server(url: str) -> dict[str, float]:
    """Clients that do no more than they must: they share the processors with the server."""
    host, port = url.removeprefix("http://").split(":")

    async def ask(question: str, count: int) -> tuple[float, int]:
        body = json.dumps(
            {
                "model": "bench",
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
                "max_tokens": count,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(host, int(port))
        start, first, tail = time.perf_counter(), 0.0, b""
        writer.write(head.encode() + body)
        while data := await reader.read(1 << 16):
            # The first event only says who speaks.
            if not first and b'"content":' in data.replace(b'"content":""', b""):
                first = time.perf_counter() - start
            tail = (tail + data)[-1000:]
        writer.close()
        (told,) = re.findall(rb'"completion_tokens":(\d+)', tail)
        return first, int(told)

    return await measure(ask)


@contextmanager
def serving(model: str, threads: int) -> Iterator[str]:
    """The URL of a server in a process of its own."""
    options = ["--port", "0", "--threads", str(threads), "--log-level", "warning"]
    options += ["--max-num-seqs", str(MAX_NUM_SEQS), "--kv-memory", KV_MEMORY]
    command = [sys.executable, "-c", _SERVE, "serve", f"bench={model}", *options]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_DATA_HOME": folder, "GLIMMER_AUTH": "off"}
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            try:
                assert process.stderr is not None
                line = process.stderr.readline()
                found = re.search(r"listens at (\S+)", line)
                if found is None:
                    raise RuntimeError(f"the server does not start: {line}")
                _wait_until_healthy(found[1])
                yield found[1]
            finally:
                process.terminate()


def _wait_until_healthy(url: str) -> None:
    import httpx

    while httpx.get(f"{url}/health").status_code != 200:
        time.sleep(0.1)


def main() -> None:
    parser = child.parser(__doc__)
    parser.add_argument("--server-first", action="store_true")
    args = parser.parse_args()
    result = {}
    for what in ("server", "engine") if args.server_first else ("engine", "server"):
        if what == "engine":
            result[what] = asyncio.run(at_engine(args.model, args.threads))
        else:
            with serving(args.model, args.threads) as url:
                result[what] = asyncio.run(at_server(url))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
