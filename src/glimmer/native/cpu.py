"""What this machine offers: cores and memory. Knows no model."""

from __future__ import annotations

import math
import os
from pathlib import Path


def physical_cores() -> int:
    """Physical cores that this process may use, at least 1.

    Two hardware threads of one core share its multipliers, so a second one slows a matrix product
    down. A container's CPU quota counts too.
    """
    return max(1, min(len(cpu_of_each_core()) or (os.cpu_count() or 2) // 2, _quota_cores()))


def cpu_of_each_core() -> list[int]:
    """One CPU number of each physical core that this process may use, in order, so that neighbours
    are of one NUMA node; empty where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    return list(cores.values())


def _quota_cores() -> int:
    limit = Path("/sys/fs/cgroup/cpu.max")
    if not limit.exists():
        return 2**31
    quota, period = limit.read_text().split()
    return 2**31 if quota == "max" else max(1, math.ceil(int(quota) / int(period)))


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    available = None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if available is not None and limit.exists() and used.exists():
        text = limit.read_text().strip()
        if text != "max":
            available = min(available, max(0, int(text) - int(used.read_text())))
    return available
