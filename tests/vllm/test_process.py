"""vLLM as a child: a stand-in for its program is started, dies, comes back and is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from glimmer.errors import GenerationError, InvalidParameterError
from glimmer.server.run import Server
from glimmer.vllm import VllmProcess, find_program, guard
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


def is_running(pid: int) -> bool:
    """And not merely unburied: who has lost its parent is not always waited for in a container."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")


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
        assert "--port" not in line, "others reach a port too"
        assert "--served-model-name glm-4 " in line
        assert "--dtype float32 --max-model-len 512 --max-num-seqs 3 " in line
        assert line.endswith("--kv-cache-memory-bytes 1048576 --tensor-parallel-size 2")
        assert "api-key" not in line, "a command line can be read by everybody"
        socket = Path(args[args.index("--uds") + 1])
        assert socket.parent.stat().st_mode & 0o777 == 0o700, "nobody else enters"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as client:
            refused = client.get("http://vllm/v1/models")
        assert refused.status_code == 401, "nobody gets past the front"

        os.kill(int(pid), signal.SIGKILL)
        until(lambda: len(starts(tmp_path)) == 2)
        until(lambda: ask(server).status_code == 200)
        second = int(starts(tmp_path)[1][0])
        assert is_alive(second)
        told = httpx.get(f"{server.url}/metrics").text
        assert 'glimmer:backend_up{backend="vllm",model_name="glm-4"} 1.0' in told
    until(lambda: not is_alive(second))
    assert not socket.parent.exists()
    logged = [record.getMessage() for record in caplog.records]
    assert any("fake vLLM got" in line for line in logged), "its log is passed on"
    assert any("ended by signal 9; it is started again" in line for line in logged)


def test_what_it_leaves_behind_is_ended_and_it_comes_back(
    folders: dict[str, Path], tmp_path: Path, program: Path
) -> None:
    """A worker holds the pipe of its log, and the memory of its device."""
    worker = tmp_path / "worker"
    with running(model(folders, engine_args=["--worker", str(worker)])) as server:
        assert ask(server).status_code == 200
        first = int(worker.read_text())
        assert is_alive(first)
        os.kill(int(starts(tmp_path)[0][0]), signal.SIGKILL)
        until(lambda: not is_running(first))
        until(lambda: len(starts(tmp_path)) == 2)
        until(lambda: ask(server).status_code == 200)
        second = int(worker.read_text())
        assert second != first
    assert not is_running(second)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_it_does_not_outlive_glimmer(
    folders: dict[str, Path], tmp_path: Path, program: Path, number: signal.Signals
) -> None:
    """Which is killed, or loses its terminal, and can do nothing about it."""
    worker = tmp_path / "worker"
    glimmer = subprocess.Popen(
        [
            *(sys.executable, "-m", "glimmer", "serve", f"glm-4={folders['glm-4']}"),
            *("--family", "glm4", "--engine", "vllm", "--port", "0"),
            *("--database", f"{tmp_path}/server.db", "--jobs-dir", f"{tmp_path}/jobs"),
            *("--", "--never", "--worker", str(worker)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: worker.exists() and worker.read_text())
        ((pid, *args),) = starts(tmp_path)
        assert is_running(int(pid))
        socket = Path(args[args.index("--uds") + 1])
        assert socket.parent.exists()
        glimmer.send_signal(number)
        assert glimmer.wait() == -number
        until(lambda: not is_running(int(pid)))
        until(lambda: not is_running(int(worker.read_text())))
        until(lambda: not socket.parent.exists())
    finally:
        glimmer.kill()
        glimmer.wait()


def test_one_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    """By the guard alone, in the end."""
    deaf = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    deaf += "; print('deaf', flush=True); time.sleep(60)"
    code = "import sys; from glimmer.vllm import guard; guard.GRACE_S = 0.2"
    code += "; sys.exit(guard.main(*sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), sys.executable, "-c", deaf],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"deaf\n"
        process.communicate()
    assert process.returncode == guard.SIGNALLED + signal.SIGKILL


def test_a_program_that_cannot_be_run_is_told(
    folders: dict[str, Path], tmp_path: Path, program: Path
) -> None:
    program.write_text("#!/nowhere/at/all\n")
    with running(model(folders), wait=False) as server:
        until(lambda: server.service.failure is not None)
        assert "vllm cannot be started: No such file" in str(server.service.failure)


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


@pytest.mark.parametrize(
    "args",
    [
        *(["--port", "1"], ["--api-key=x"], ["--served-model-name", "x"]),
        *(["--api_key", "x"], ["--served_model_name=x"], ["--hos", "0.0.0.0"], ["--ssl-cert", "x"]),
    ],
)
def test_what_is_ours_to_set_is_refused(args: list[str]) -> None:
    with pytest.raises(InvalidParameterError, match="is set by Glimmer"):
        check_args(["--tensor-parallel-size", "2", *args])


def test_what_is_not_ours_goes_to_vllm() -> None:
    args = ["-tp", "2", "--hf-overrides", "{}", "--model-impl", "auto", "--api-server-count=2"]
    check_args([*args, "--", "-", "--port-of-nothing"])


def test_an_end_before_it_was_ready_is_not_passed_over(tmp_path: Path) -> None:
    """However short before."""
    process = VllmProcess("/bin/false", tmp_path, "m", environ={})
    process.start()
    until(process.has_failed)
    with pytest.raises(GenerationError, match="ended with code 1 before it was ready"):
        process.ready()
    process.stop()


def test_settings_and_keys_of_glimmer_stay_here(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nenv >"{tmp_path}/seen"\n')
    program.chmod(0o755)
    environ = {"PATH": os.environ["PATH"], "GLIMMER_MASTER_KEY": "m", "HF_HOME": "h"}
    process = VllmProcess(str(program), tmp_path, "m", environ=environ)
    process.start()
    until(process.has_failed)
    process.stop()
    seen = (tmp_path / "seen").read_text()
    assert "HF_HOME=h" in seen
    assert f"VLLM_API_KEY={process.key}" in seen
    assert "GLIMMER" not in seen


def test_all_is_refused_before_anything_starts(
    folders: dict[str, Path], tmp_path: Path, program: Path
) -> None:
    with (
        pytest.raises(InvalidParameterError, match="--port of vLLM is set by Glimmer"),
        running(model(folders, engine_args=["--port=1"])),
    ):
        pass
    assert not (tmp_path / "starts").exists()
