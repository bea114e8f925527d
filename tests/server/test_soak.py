"""A server that has answered thousands of requests holds no more memory than after hundreds."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

URL = "/v1/chat/completions"
ROUNDS, PER_ROUND = 12, 250


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


async def storm(host: str, port: int, seed: int) -> None:
    """Answers whole and streamed, refusals, and clients that leave in the middle."""
    slots = asyncio.Semaphore(40)

    async def one(number: int) -> None:
        kind = number % 5
        body: dict[str, Any] = {
            "model": "plain" if kind != 1 else "none",
            "messages": [{"role": "user", "content": f"{seed} {number} " * (1 + number % 20)}],
            "max_tokens": 8 if kind != 4 else 2000,
            "stream": kind >= 2,
        }
        data = json.dumps(body).encode()
        head = f"POST {URL} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        async with slots:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(head.encode() + data)
            if kind == 4:
                await reader.read(300)
            else:
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 404" if kind == 1 else b"HTTP/1.1 200")
            writer.close()

    await asyncio.gather(*(one(number) for number in range(PER_ROUND)))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_flat(models: list[dict[str, Any]], tmp_path: Path) -> None:
    code = "import sys; from glimmer.cli.main import main; sys.exit(main())"
    command = [
        *(sys.executable, "-c", code, "serve", f"plain={models[2]['source']}", "--port", "0"),
        *("--kv-memory", "16MiB", "--threads", "1", "--log-level", "warning"),
    ]
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"listens at (http://([\d.]+):(\d+))", process.stderr.readline())
            assert found is not None
            url, host, port = found[1], found[2], int(found[3])
            while httpx.get(f"{url}/health").status_code == 503:
                pass
            sizes = []
            for number in range(ROUNDS):
                asyncio.run(storm(host, port, number))
                sizes.append(rss_mib(process.pid))
            assert sizes[-1] - sizes[2] < 12, sizes
        finally:
            process.kill()
