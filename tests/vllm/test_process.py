"""vLLM as a child: a stand-in for its program is started, dies, comes back and is stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from glimmer.errors import InvalidParameterError
from glimmer.server.run import Server
from glimmer.vllm import find_program
from glimmer.vllm.process import check_args
from tests.support.server import running

ROOT = Path(__file__).resolve().parents[2]
CHAT: dict[str, Any] = {
    "model": "glm-4",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 4,
    "temperature": 0,
}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `vllm` is on PATH. Each start leaves a line in a file beside it."""
    path = tmp_path / "bin" / "vllm"
    path.parent.mkdir()
    path.write_text(
        "#!/bin/sh\n"
        f'echo "$$ $*" >>"{tmp_path}/starts"\n'
        f'cd "{ROOT}" && exec "{sys.executable}" -m tests.support.fake_vllm "$@"\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    monkeypatch.delenv("GLIMMER_VLLM", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("glimmer.vllm.engine.HEALTH_S", 0.1)
    return path


def starts(tmp_path: Path) -> list[list[str]]:
    """Process id and arguments of each."""
    return [line.split(" ") for line in (tmp_path / "starts").read_text().splitlines()]


def until(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ask(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=60)


def model(folders: dict[str, Path], **values: Any) -> dict[str, Any]:
    return {
        "name": "glm-4",
        "source": str(folders["glm-4"]),
        "family": "glm4",
        "engine": "vllm",
        **values,
    }


def test_it_is_started_and_comes_back_and_is_stopped(
    folders: dict[str, Path],
    tmp_path: Path,
    program: Path,
    caplog: pytest.LogCaptureFixture,
    restored_logging: None,
) -> None:
    caplog.set_level("INFO", "glimmer.server")
    given = model(
        folders,
        weights="float32",
        max_num_seqs=3,
        max_model_len=512,
        kv_memory="1MiB",
        engine_args=["--tensor-parallel-size", "2"],
    )
    with running(given, log_level="info") as server:
        answer = ask(server)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 4
        ((pid, *args),) = starts(tmp_path)
        line = " ".join(args)
        assert "--host 127.0.0.1 " in line
        assert "--served-model-name glm-4 " in line
        assert "--dtype float32 --max-model-len 512 --max-num-seqs 3 " in line
        assert line.endswith("--kv-cache-memory-bytes 1048576 --tensor-parallel-size 2")
        assert "api-key" not in line, "a command line can be read by everybody"
        port = args[args.index("--port") + 1]
        refused = httpx.get(f"http://127.0.0.1:{port}/v1/models")
        assert refused.status_code == 401, "nobody gets past the front"

        os.kill(int(pid), signal.SIGKILL)
        until(lambda: len(starts(tmp_path)) == 2)
        until(lambda: ask(server).status_code == 200)
        second = int(starts(tmp_path)[1][0])
        assert is_alive(second)
    until(lambda: not is_alive(second))
    told = [record.getMessage() for record in caplog.records]
    assert any("fake vLLM got" in line for line in told), "its log is passed on"
    assert any("ended by signal 9; it is started again" in line for line in told)


def test_a_server_that_is_stopped_does_not_wait_for_it(
    folders: dict[str, Path], tmp_path: Path, program: Path
) -> None:
    with running(model(folders, engine_args=["--never"]), wait=False):
        until(lambda: (tmp_path / "starts").exists())
    ((pid, *_),) = starts(tmp_path)
    assert not is_alive(int(pid))


def test_one_that_never_gets_ready_is_an_error_that_says_why(
    folders: dict[str, Path], tmp_path: Path, program: Path
) -> None:
    with running(model(folders, engine_args=["--fail"]), wait=False) as server:
        until(lambda: server.service.failure is not None)
        told = str(server.service.failure)
    assert "ended with code 3 before it was ready" in told
    assert "was made to fail" in told
    assert len(starts(tmp_path)) == 1


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    empty = {"PATH": str(tmp_path)}
    with pytest.raises(InvalidParameterError, match="no program `vllm` on PATH"):
        find_program(empty)
    with pytest.raises(InvalidParameterError, match="GLIMMER_VLLM names 'nowhere'"):
        find_program({**empty, "GLIMMER_VLLM": "nowhere"})


@pytest.mark.parametrize("args", [["--port", "1"], ["--api-key=x"], ["--served-model-name", "x"]])
def test_what_is_ours_to_set_is_refused(args: list[str]) -> None:
    with pytest.raises(InvalidParameterError, match="is set by Glimmer"):
        check_args(["--tensor-parallel-size", "2", *args])


def test_all_is_refused_before_anything_starts(
    folders: dict[str, Path], tmp_path: Path, program: Path
) -> None:
    with (
        pytest.raises(InvalidParameterError, match="--port of vLLM is set by Glimmer"),
        running(model(folders, engine_args=["--port=1"])),
    ):
        pass
    assert not (tmp_path / "starts").exists()
