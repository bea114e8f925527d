"""What this process holds in memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The most that was ever resident at a time."""
    if _STATUS.exists():
        # ru_maxrss would count what the parent held before this program replaced it.
        return _status_bytes()["VmHWM"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> dict[str, int]:
    """Resident now: "anonymous" is the process's own, "file" are pages of mapped files.

    Empty where the system does not say.
    """
    if not _STATUS.exists():
        return {}
    status = _status_bytes()
    return {"anonymous": status["RssAnon"], "file": status["RssFile"]}


def _status_bytes() -> dict[str, int]:
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return {f[0].rstrip(":"): int(f[1]) * 1024 for f in lines if f[-1] == "kB"}
