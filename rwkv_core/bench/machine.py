"""What the operating system says about processes and this machine."""

from __future__ import annotations

import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path


def peak_memory_bytes() -> int:
    """The most memory that this process ever had resident."""
    # getrusage's number survives exec: a child would begin with its parent's. Linux's own does not.
    from_linux = _status_bytes("VmHWM")
    if from_linux is not None:
        return from_linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int | None:
    """The memory that this process has resident now; None where Linux's /proc is missing."""
    return _status_bytes("VmRSS")


@dataclass(frozen=True)
class ProcessMemory:
    """Resident bytes of a process; None without Linux's /proc, or if the process has ended."""

    now: int | None
    peak: int | None  # since it began


def memory_of(pid: int) -> ProcessMemory:
    return ProcessMemory(_status_bytes("VmRSS", str(pid)), _status_bytes("VmHWM", str(pid)))


def num_processors() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor's name for people; the architecture where none is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    values = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(values, "") or platform.processor() or platform.machine()


def _status_bytes(key: str, process: str = "self") -> int | None:
    """The value of a line `key:  123 kB` of a process's status, in bytes."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return next((int(value) * 1024 for value in values), None)
