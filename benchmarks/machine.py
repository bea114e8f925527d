"""What is compared, on what: processor, instruction sets, versions, and who else was busy."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

import glimmer
from benchmarks import child
from glimmer.native import instruction_set
from glimmer.native.cpu import physical_cores

_CPUINFO, _STAT = Path("/proc/cpuinfo"), Path("/proc/stat")
MAX_FOREIGN_LOAD = 0.05
"""Above this share of the processors for other programs, a comparison says nothing: an engine whose
threads spin while they wait for each other loses several times what was taken from it."""
_INSTALL = "make bench installs it"


@dataclass(frozen=True, slots=True)
class Machine:
    processor: str
    num_cores: int
    num_threads: int
    python: str
    glimmer: str
    isa: str


@dataclass(frozen=True, slots=True)
class Peer:
    """llama.cpp, or why it is not measured."""

    version: str | None
    features: tuple[str, ...] = ()
    """Instruction sets and options that it was compiled with."""
    missing: str | None = None

    @property
    def is_wider(self) -> bool:
        """Whether it may use registers or instructions that Glimmer does not."""
        return any(f.startswith(("AVX512", "AVX_VNNI", "AMX")) for f in self.features)


def describe_machine(num_threads: int) -> Machine:
    return Machine(
        processor=_processor(),
        num_cores=physical_cores(),
        num_threads=num_threads,
        python=platform.python_version(),
        glimmer=glimmer.__version__,
        isa=instruction_set(),
    )


def find_peer(model: str, num_threads: int) -> Peer:
    """Try llama.cpp on ``model``, so that a build that crashes here is found before the clock."""
    if importlib.util.find_spec("llama_cpp") is None:
        return Peer(None, missing=f"llama-cpp-python is not installed ({_INSTALL})")
    try:
        arguments = ("probe", "--model", model, "--threads", str(num_threads))
        found = child.run("peers.llama_cpp", *arguments)
    except child.ChildFailedError as error:
        return Peer(None, missing=str(error))
    # "CPU : SSE3 = 1 | AVX2 = 1 | ..."
    pairs = (item.split("=") for item in found["system_info"].split(":", 1)[1].split("|"))
    features = tuple(pair[0].strip() for pair in pairs if len(pair) == 2 and int(pair[1]))
    return Peer(found["version"], features)


def is_quiet(foreign_load: float | None) -> bool:
    """Whether a comparison says something; so it is assumed where the load is not known."""
    return (foreign_load or 0) <= MAX_FOREIGN_LOAD


class ForeignLoad:
    """Share of the processors that went to others than this program's children, since made."""

    def __init__(self) -> None:
        self._start = _processor_seconds()

    def share(self) -> float | None:
        """Between 0 and 1; None where the system does not say."""
        if self._start is None or (now := _processor_seconds()) is None:
            return None
        total, busy, ours = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, busy - ours) / total if total else 0.0


def _processor_seconds() -> tuple[float, float, float] | None:
    """Of all processors together: total, busy, and spent by our children that have ended."""
    if not _STAT.exists():
        return None
    ticks = [int(field) for field in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    per_second = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]  # idle, waiting for a disk
    total = sum(ticks)
    return total / per_second, (total - idle) / per_second, usage.ru_utime + usage.ru_stime


def _processor() -> str:
    name = platform.processor() or platform.machine()
    if not _CPUINFO.exists():
        return name
    fields: dict[str, str] = {}
    for line in _CPUINFO.read_text().split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    name = fields.get("model name", name)
    if "cpu family" in fields:  # a virtual machine's name may say no more than the brand
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return name
