"""How many tokens a second one front passes from vLLM to its clients:

    python -m benchmarks.vllm_front

A stand-in for vLLM streams tokens of the demo model's vocabulary at a steady rate, an event for
each or for some (vLLM's ``--stream-interval``); `glimmer serve --backend` stands between it and
clients that read bytes and no more. What is told is the processor time of the front alone, which
other programs change little: a Python process has one core's at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
_VOCABULARY = 49_000
_TICKS = os.sysconf("SC_CLK_TCK")


async def stand_in(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float, interval: int
) -> None:
    """One connection, one request after another; ``interval`` tokens in an event."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            body = json.loads(await reader.readexactly(length)) if length else {}
            if not head.startswith(b"POST"):
                told = {"data": [{"id": "demo", "max_model_len": 8192}]}
                _send(writer, _HEAD % b"application/json", json.dumps(told).encode(), b"")
                continue
            writer.write(_HEAD % b"text/event-stream")
            loop = asyncio.get_running_loop()
            next_at, count = loop.time() + random.random() / rate, body["max_tokens"]
            for number in range(0, count, interval):
                await asyncio.sleep(next_at - loop.time())
                next_at += interval / rate
                token_ids = [
                    random.randrange(200, _VOCABULARY) for _ in range(min(interval, count - number))
                ]
                choice = {
                    "index": 0,
                    "text": " word",
                    "logprobs": None,
                    "finish_reason": "length" if number + interval >= count else None,
                    "stop_reason": None,
                    "token_ids": token_ids,
                }
                event = {
                    "id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1,
                    "model": "demo", "choices": [choice],
                }  # fmt: skip
                _send(writer, f"data: {json.dumps(event)}\n\n".encode())
            _send(writer, b"data: [DONE]\n\n", b"")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def _send(writer: asyncio.StreamWriter, *chunks: bytes) -> None:
    for chunk in chunks:
        if chunk.startswith(b"HTTP/"):
            writer.write(chunk)
        else:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))


async def client(port: int, num_tokens: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(
        {
            "model": "demo", "max_tokens": num_tokens, "stream": True, "loop_guard": False,
            "messages": [{"role": "user", "content": "Tell me a story."}],
        }
    ).encode()  # fmt: skip
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    data = await reader.read()
    writer.close()
    if b"data: [DONE]" not in data:
        raise RuntimeError(data[-500:].decode(errors="replace"))


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def measure(
    num_streams: int, num_tokens: int, rate: float, interval: int, folder: Path
) -> None:
    server = await asyncio.start_server(lambda r, w: stand_in(r, w, rate, interval), "127.0.0.1", 0)
    backend = server.sockets[0].getsockname()[1]
    front = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "glimmer", "serve", "demo", "--backend"),
        *(f"http://127.0.0.1:{backend}", "--port", "0", "--max-num-seqs", "4096"),
        *("--database", f"{folder}/server.db", "--jobs-dir", f"{folder}/jobs"),
        *("--log-format", "json"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert front.stderr is not None
    try:
        port = 0
        while b"is loaded" not in (line := await front.stderr.readline()):
            if b"listens at" in line:
                port = int(json.loads(line)["message"].rpartition(":")[2])
            if not line:
                raise RuntimeError("the front has ended")
        drain = asyncio.create_task(front.stderr.read())
        await asyncio.gather(*(client(port, 16) for _ in range(8)))
        before, loop = processor_s(front.pid), asyncio.get_running_loop()
        start = loop.time()
        await asyncio.gather(*(client(port, num_tokens) for _ in range(num_streams)))
        took, used = loop.time() - start, processor_s(front.pid) - before
        count = num_streams * num_tokens
        print(
            f"{num_streams} streams of {num_tokens} tokens at {rate:g} a second, "
            f"{interval} an event: "
            f"{count / took:.0f} tokens/s passed, {used / count * 1e6:.0f} us of processor time a "
            f"token, so {count / used:.0f} tokens/s for one core"
        )
    finally:
        front.terminate()
        await front.wait()
        await drain
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20.0, help="tokens a second of each stream")
    parser.add_argument("--interval", type=int, default=1, help="tokens in an event")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(args.streams, args.tokens, args.rate, args.interval, Path(folder)))


if __name__ == "__main__":
    main()
