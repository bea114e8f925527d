"""Runs a program, and ends it with all that it has started when whoever started this is gone.

A program of its own, of the standard library alone: ``python guard.py FOLDER PROGRAM ARGUMENT...``.
Its standard input is a pipe of which Glimmer holds the other end. However Glimmer ends, killed or
with its terminal, the pipe ends too, and so does the program; Glimmer closes it to stop the
program. FOLDER, which holds what the program needs while it runs, is deleted then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading

GRACE_S = 20.0
"""For the program to stop by itself when it is asked to."""
SIGNALLED = 128
"""An exit code above it is this and the number of the signal that ended the program."""


def main(folder: str, *command: str) -> int:
    """Run it to its end; the exit code."""
    is_alone = threading.Event()
    try:
        # A group of its own: what is left of it in the end is ended without this process.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror or error}", flush=True)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: _signal(process, signal.SIGTERM))
    threading.Thread(target=_end_with_the_pipe, args=(process, is_alone), daemon=True).start()
    code = process.wait()
    # Its workers may live on without it, and hold the memory of their devices.
    _signal(process, signal.SIGKILL)
    if is_alone.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else SIGNALLED - code


def _end_with_the_pipe(process: subprocess.Popen[bytes], is_alone: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass  # nobody writes
    is_alone.set()
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the program and all of its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
