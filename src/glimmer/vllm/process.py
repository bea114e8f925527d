"""vLLM as a child of this process: started, listened to, started again when it dies, stopped."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from glimmer.errors import GenerationError, InvalidParameterError
from glimmer.vllm import guard

_LOG = logging.getLogger("glimmer.server")
_LAST_WORDS_S = 2.0
"""For what it has written to be read when it has ended."""
_MAX_PLACE = 70
"""Of the 104 bytes that the name of a socket may have, those before its folder."""
_NUM_LAST_LINES = 15
_MAX_LINE = 2000
_MAX_PAUSE_S = 60.0
_LONG_LIFE_S = 120.0
"""Who lived so long did not die of its start: the pauses begin anew."""
# What decides who can reach it, and by what name and key, is Glimmer's to say.
_OWN_FLAGS = (
    "--host", "--port", "--uds", "--api-key", "--served-model-name", "--model", "--headless",
    "--ssl-keyfile", "--ssl-certfile",
)  # fmt: skip


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
        # As vLLM reads it: underscores are dashes, and the beginning of a flag will do.
        flag = arg.partition("=")[0].replace("_", "-")
        if len(flag) > 2 and any(own.startswith(flag) for own in _OWN_FLAGS):
            raise InvalidParameterError(
                f"{arg.partition('=')[0]} of vLLM is set by Glimmer, which stands in front of it: "
                "leave it out. To run vLLM by yourself, start it and name it with --backend URL."
            )


class VllmProcess:
    """One `vllm serve`, on a socket in a folder that no other user enters, behind a key of its own.
    Between it and this process stands ``guard``, which ends it whatever becomes of this one."""

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
        # Not a port: it may be taken by others, and vLLM's /invocations asks nobody for a key.
        self._own_folder = _private_folder()
        self.socket = self._own_folder / "http"
        self._name = name
        self._command = [
            program, "serve", str(folder), "--served-model-name", name, "--uds", str(self.socket),
            *args,
        ]  # fmt: skip
        # Glimmer's own settings, keys among them, are none of its business. Its key goes there, for
        # a command line can be read by everybody on the machine.
        others = {name: v for name, v in environ.items() if not name.startswith("GLIMMER_")}
        self._environ = {**others, "VLLM_API_KEY": self.key}
        self._process: subprocess.Popen[str] | None = None
        self._last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        self._stopping = threading.Event()
        self._failure: str | None = None
        self._was_ready = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=f"vllm-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def has_failed(self) -> bool:
        """Whether it ended before it was ever ready; it is not started again then."""
        return self._failure is not None

    def failure(self) -> GenerationError:
        """Why."""
        return GenerationError(f"vLLM cannot serve {self._name}: {self._failure}")

    def ready(self) -> None:
        """It has answered: from now on it is started again whenever it ends.

        Raises:
            GenerationError: it has ended in between.
        """
        with self._lock:
            if self._failure is not None:
                raise self.failure()
            self._was_ready = True

    def stop(self) -> None:
        """End it and all that it has started."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            _close_pipe(process)
            try:
                process.wait(guard.GRACE_S)
            except subprocess.TimeoutExpired:
                _LOG.warning("vLLM (%s) does not stop; it is killed", self._name)
                try:
                    process.wait(_LAST_WORDS_S)
                except subprocess.TimeoutExpired:
                    process.kill()  # a device that hangs lets nobody end: it is left
        if self._thread.is_alive():
            self._thread.join()
        shutil.rmtree(self._own_folder, ignore_errors=True)

    # In the thread

    def _keep(self) -> None:
        num_failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            ending = self._run_once()
            if self._stopping.is_set():
                return
            with self._lock:
                if not self._was_ready:
                    last = "\n".join(list(self._last_lines))
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
            self.socket.unlink(missing_ok=True)  # of one that died
            _LOG.info("starting vLLM: %s", " ".join(self._command))
            try:
                self._process = process = subprocess.Popen(
                    [
                        *(sys.executable, "-I", "-S", guard.__file__),
                        *(str(self._own_folder), *self._command),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=self._environ,
                    text=True,
                    errors="replace",
                    # Of its own session: neither Ctrl-C nor the end of the terminal is for it.
                    start_new_session=True,
                )
            except OSError as error:
                return f"cannot be started ({error.strerror or error})"
        reader = threading.Thread(target=self._pass_on, args=(process,), daemon=True)
        reader.start()
        # Its end is waited for, and not that of what it writes: others may hold that pipe.
        code = process.wait()
        _close_pipe(process)
        reader.join(_LAST_WORDS_S)
        if code > guard.SIGNALLED:
            code = guard.SIGNALLED - code
        return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                text = line.rstrip()[:_MAX_LINE]
                self._last_lines.append(text)
                _LOG.info("vLLM (%s): %s", self._name, text)


def _private_folder() -> Path:
    """For a socket, whose whole name must be short."""
    place = tempfile.gettempdir()
    return Path(
        tempfile.mkdtemp(prefix="glimmer-vllm-", dir=place if len(place) < _MAX_PLACE else "/tmp")
    )


def _close_pipe(process: subprocess.Popen[str]) -> None:
    """By which the guard hears that vLLM is to end."""
    assert process.stdin is not None
    process.stdin.close()
