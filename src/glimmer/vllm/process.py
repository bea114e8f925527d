"""vLLM as a child of this process: started, listened to, started again when it dies, stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from glimmer.errors import GenerationError, InvalidParameterError

_LOG = logging.getLogger("glimmer.server")
_HOST = "127.0.0.1"
_STOP_S = 20.0
_NUM_LAST_LINES = 15
_MAX_LINE = 2000
_MAX_PAUSE_S = 60.0
_LONG_LIFE_S = 120.0
"""Who lived so long did not die of its start: the pauses begin anew."""
# What decides who can reach it, and by what name and key, is Glimmer's to say.
_OWN_FLAGS = ("--host", "--port", "--uds", "--api-key", "--served-model-name", "--model")


def find_program(environ: Mapping[str, str] = os.environ) -> str:
    """``GLIMMER_VLLM``, else ``vllm`` on PATH.

    Raises:
        InvalidParameterError: there is none.
    """
    named = environ.get("GLIMMER_VLLM", "")
    found = shutil.which(named or "vllm", path=environ.get("PATH"))
    if found is None:
        where = f"GLIMMER_VLLM names {named!r}, which is no program" if named else (
            "there is no program `vllm` on PATH"
        )  # fmt: skip
        raise InvalidParameterError(
            f"The engine vllm needs vLLM, but {where}. Install it in an environment of its own "
            "(pip install vllm) and name its program: GLIMMER_VLLM=/path/to/bin/vllm. Or name a "
            "server that runs already: --backend URL."
        )
    return found


def check_args(args: Sequence[str]) -> None:
    """Raise InvalidParameterError for a flag of vLLM's that is not the caller's to give."""
    for arg in args:
        if arg.partition("=")[0] in _OWN_FLAGS:
            raise InvalidParameterError(
                f"{arg.partition('=')[0]} of vLLM is set by Glimmer, which stands in front of it: "
                "leave it out. To run vLLM by yourself, start it and name it with --backend URL."
            )


class VllmProcess:
    """One `vllm serve`, on a port of the loopback interface, behind a key that nobody else has."""

    def __init__(
        self,
        program: str,
        folder: Path,
        name: str,
        args: Sequence[str] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """``name`` is what it serves the model as.

        Raises:
            InvalidParameterError: an argument that is set here.
        """
        check_args(args)
        self.key = secrets.token_urlsafe(32)
        port = _free_port()
        self.url = f"http://{_HOST}:{port}"
        self._name = name
        self._command = [
            program, "serve", str(folder), "--served-model-name", name, "--host", _HOST,
            "--port", str(port), *args,
        ]  # fmt: skip
        # In the environment: a command line can be read by everybody on the machine.
        self._environ = {**environ, "VLLM_API_KEY": self.key}
        self._process: subprocess.Popen[str] | None = None
        self._last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        self._stopping = threading.Event()
        self._failure: str | None = None
        self._was_ready = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=f"vllm-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """While it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def has_failed(self) -> bool:
        """Whether it ended before it was ever ready; it is not started again then."""
        return self._failure is not None

    def failure(self) -> GenerationError:
        """Why."""
        return GenerationError(f"vLLM cannot serve {self._name}: {self._failure}")

    def ready(self) -> None:
        """It has answered: from now on it is started again whenever it ends."""
        self._was_ready = True

    def stop(self) -> None:
        """End it and all that it has started."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            _signal_group(process, signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                _LOG.warning("vLLM (%s) does not stop; it is killed", self._name)
            _signal_group(process, signal.SIGKILL)  # what it may have left behind
        if self._thread.is_alive():
            self._thread.join()

    # In the thread

    def _keep(self) -> None:
        num_failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            ending = self._run_once()
            if self._stopping.is_set():
                return
            if not self._was_ready:
                last = "\n".join(self._last_lines)
                self._failure = f"{ending} before it was ready. It said last:\n{last}"
                return
            num_failures = 0 if time.monotonic() - started > _LONG_LIFE_S else num_failures + 1
            pause = min(2.0 ** max(num_failures - 1, 0), _MAX_PAUSE_S)
            _LOG.error("vLLM (%s) %s; it is started again in %g s", self._name, ending, pause)
            self._stopping.wait(pause)

    def _run_once(self) -> str:
        """Run it to its end; how it ended."""
        with self._lock:
            if self._stopping.is_set():
                return "was stopped"
            _LOG.info("starting vLLM: %s", " ".join(self._command))
            try:
                self._process = process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=self._environ,
                    text=True,
                    errors="replace",
                    # Of its own group: Ctrl-C is for us to pass on, when its requests have ended.
                    start_new_session=True,
                )
            except OSError as error:
                return f"cannot be started ({error.strerror or error})"
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                text = line.rstrip()[:_MAX_LINE]
                self._last_lines.append(text)
                _LOG.info("vLLM (%s): %s", self._name, text)
        code = process.wait()
        # Its workers may live on without it, and hold the memory of their devices.
        _signal_group(process, signal.SIGKILL)
        return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
